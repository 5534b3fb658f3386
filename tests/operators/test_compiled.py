"""Our operators against mmcv's compiled ones, called through ``mmcv.ops``; skipped if none are compiled.

Only CPU kernels are compared: mmcv has none for RoIPool, focal losses, attention and CARAFE.
"""

from __future__ import annotations

import pytest
import torch

SEEDS = range(5)


def crowd(seed, count=60):
    """Boxes with many overlaps and tied scores."""
    torch.manual_seed(seed)
    start = torch.randint(0, 25, (count, 2)).float()
    boxes = torch.cat([start, start + torch.randint(1, 15, (count, 2))], dim=1)
    return boxes, torch.randint(1, 12, (count,)).float() / 12


def ranked(seed):
    """The same without tied scores, because the order of ties in mmcv's NMS depends on the sort."""
    boxes, scores = crowd(seed)
    return boxes, (scores + torch.randperm(len(scores)) / 1000) / 2


def both(ours, compiled, name, *arguments, written=(), **options):
    """Call both implementations on copies; returns what they return or write."""
    results = []
    for form in (ours[name], getattr(compiled, name)):
        copies = [a.clone() if i in written else a for i, a in enumerate(arguments)]
        returned = form(*copies, **options)
        results.append([copies[i] for i in written] if written else returned)
    return results


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("offset", [0, 1])
def test_nms(ours, compiled, seed, offset):
    boxes, scores = ranked(seed)
    mine, theirs = both(ours, compiled, "nms", boxes, scores, iou_threshold=0.3, offset=offset)
    assert mine.tolist() == theirs.tolist()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("method", [0, 1, 2])
@pytest.mark.parametrize("offset", [0, 1])
def test_soft_nms(ours, compiled, seed, method, offset):
    boxes, scores = crowd(seed)
    options = {"iou_threshold": 0.3, "sigma": 0.5, "min_score": 0.2, "method": method, "offset": offset}
    kept = []
    for form in (ours["softnms"], compiled.softnms):
        dets = torch.zeros(len(boxes), 5)
        indices = form(boxes.clone(), scores.clone(), dets, **options)
        kept.append((indices.tolist(), dets[: len(indices)]))
    assert kept[0][0] == kept[1][0]
    torch.testing.assert_close(kept[0][1], kept[1][1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_nms_match_and_overlaps(ours, compiled, seed):
    boxes, scores = ranked(seed)
    dets = torch.cat([boxes, scores[:, None]], dim=1)
    mine, theirs = both(ours, compiled, "nms_match", dets, iou_threshold=0.3)
    assert mine == theirs
    for mode in (0, 1):
        for aligned in (True, False):
            target = torch.zeros(60) if aligned else torch.zeros(60, 60)
            mine, theirs = both(
                ours,
                compiled,
                "bbox_overlaps",
                boxes,
                boxes.flip(0),
                target,
                written=(2,),
                mode=mode,
                aligned=aligned,
                offset=seed % 2,
            )
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align(ours, compiled, mode, ratio, aligned):
    torch.manual_seed(0)
    image = torch.randn(2, 3, 9, 11)
    start = torch.rand(20, 2) * 40 - 5
    rois = torch.cat([torch.arange(20.0)[:, None] % 2, start, start + 1 + torch.rand(20, 2) * 40], dim=1)
    options = {"aligned_height": 3, "aligned_width": 4, "spatial_scale": 0.25, "sampling_ratio": ratio}
    options |= {"pool_mode": mode, "aligned": aligned}
    out = torch.zeros(20, 3, 3, 4)
    mine, theirs = both(ours, compiled, "roi_align_forward", image, rois, out, out, out, written=(2, 3, 4), **options)
    torch.testing.assert_close(mine[0], theirs[0], atol=1e-5, rtol=1e-5)
    if mode == 0:
        # If all samples are outside, any of them is the maximum, 0.
        clear = theirs[0] != 0
        torch.testing.assert_close(mine[1][clear], theirs[1][clear], atol=1e-4, rtol=0)
        torch.testing.assert_close(mine[2][clear], theirs[2][clear], atol=1e-4, rtol=0)
    grad = torch.randn(3, 20, 3, 4).transpose(0, 1)
    mine, theirs = both(
        ours,
        compiled,
        "roi_align_backward",
        grad,
        rois,
        theirs[1],
        theirs[2],
        torch.zeros_like(image),
        written=(4,),
        **options,
    )
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def convolution(stride, padding, dilation, groups, deform_groups, extra=0):
    torch.manual_seed(0)
    sides = zip((8, 7), padding, dilation, stride, strict=True)
    size = [(n + 2 * p - 2 * d - 1) // s + 1 for n, p, d, s in sides]
    offset = 2 * torch.randn(2, deform_groups * 18, size[0] + extra, size[1] + extra)
    mask = torch.rand(2, deform_groups * 9, size[0] + extra, size[1] + extra)
    return torch.randn(2, 4, 8, 7), offset, mask, torch.randn(6, 4 // groups, 3, 3), torch.randn(6), size


GEOMETRY = [((1, 1), (1, 1), (1, 1), 1, 1), ((2, 1), (0, 2), (1, 2), 2, 1), ((1, 2), (1, 0), (2, 1), 1, 2)]


@pytest.mark.parametrize("geometry", GEOMETRY)
def test_deformable_convolution(ours, compiled, geometry):
    image, offset, _, weight, _, size = convolution(*geometry)
    names = ("dH", "dW", "padH", "padW", "dilationH", "dilationW", "group", "deformable_group")
    options = dict(zip(names, (*geometry[0], *geometry[1], *geometry[2], *geometry[3:]), strict=True))
    options |= {"kW": 3, "kH": 3, "im2col_step": 2}
    room, out, grad = torch.zeros(0), torch.zeros(2, 6, *size), torch.randn(2, 6, *size)
    calls = {
        "deform_conv_forward": ([image, weight, offset, out, room, room], (3,), {}),
        "deform_conv_backward_input": (
            [image, offset, grad, torch.zeros_like(image), torch.zeros_like(offset), weight, room],
            (3, 4),
            {},
        ),
        "deform_conv_backward_parameters": (
            [image, offset, grad, torch.zeros_like(weight), room, room],
            (3,),
            {"scale": 1},
        ),
    }
    for name, (arguments, written, more) in calls.items():
        mine, theirs = both(ours, compiled, name, *arguments, written=written, **options, **more)
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("geometry", GEOMETRY)
@pytest.mark.parametrize("with_bias", [True, False])
def test_modulated_deformable_convolution(ours, compiled, geometry, with_bias, extra):
    image, offset, mask, weight, bias, size = convolution(*geometry, extra=extra)
    bias = bias if with_bias else torch.zeros(0)
    names = ("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w", "group", "deformable_group")
    options = dict(zip(names, (*geometry[0], *geometry[1], *geometry[2], *geometry[3:]), strict=True))
    options |= {"kernel_h": 3, "kernel_w": 3, "with_bias": with_bias}
    room, grad = torch.zeros(0), torch.randn(2, 6, *size)
    mine, theirs = both(
        ours,
        compiled,
        "modulated_deform_conv_forward",
        image,
        weight,
        bias,
        room,
        offset,
        mask,
        torch.zeros(2, 6, *size),
        room,
        written=(6,),
        **options,
    )
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    grads = [torch.zeros_like(t) for t in (image, weight, bias, offset, mask)]
    mine, theirs = both(
        ours,
        compiled,
        "modulated_deform_conv_backward",
        image,
        weight,
        bias,
        room,
        offset,
        mask,
        room,
        *grads,
        grad,
        written=(7, 8, 9, 10, 11),
        **options,
    )
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
