"""Region pooling with ``mmcv.ops``: values against loops, gradients by finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmcv.ops import deform_roi_pool, roi_align, roi_pool

from tests.operators import reference

#: Inside; across two borders; outside; smaller than a bin; empty.
ROIS = torch.tensor(
    [[0, 3.1, 2.2, 30, 21.7], [1, -6, -5, 18.3, 40.1], [0, 70, 60, 90, 95], [1, 9.3, 9.1, 10.2, 9.9], [0, 8, 8, 8, 8]],
    dtype=torch.float64,
)
SCALE = 0.23


@pytest.fixture
def image():
    torch.manual_seed(0)
    return torch.randn(2, 3, 7, 9, dtype=torch.float64)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align(image, mode, ratio, aligned):
    out = roi_align(image, ROIS, (2, 3), SCALE, ratio, mode, aligned)
    expected, _ = reference.roi_align(image, ROIS, (2, 3), SCALE, ratio, aligned, mode)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-12)
    image.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: roi_align(x, ROIS, (2, 3), SCALE, ratio, mode, aligned), image, fast_mode=True
    )


def test_the_highest_sample_is_told_with_its_place(image, ours):
    out, y, x = (torch.zeros(5, 3, 2, 3, dtype=torch.float64) for _ in range(3))
    ours["roi_align_forward"](image, ROIS, out, y, x, 2, 3, SCALE, 2, 0, True)
    _, places = reference.roi_align(image, ROIS, (2, 3), SCALE, 2, True, "max")
    inside = (out != 0).numpy()  # far outside, all samples are 0, so any may be the maximum
    np.testing.assert_allclose(torch.stack([y, x]).numpy()[:, inside], places[:, inside], atol=1e-12)


def test_roi_pool(image):
    out = roi_pool(image, ROIS, (3, 2), SCALE)
    np.testing.assert_allclose(out.numpy(), reference.roi_pool(image, ROIS, (3, 2), SCALE), atol=1e-12)
    assert bool((out[2] == 0).all())
    image.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: roi_pool(x, ROIS, (3, 2), SCALE), image, fast_mode=True)


def test_roi_pool_of_a_turned_region_is_zero_and_has_no_gradient(image):
    image.requires_grad_()
    out = roi_pool(image, torch.tensor([[0, 20.0, 20, 4, 5]], dtype=torch.float64), (2, 2), SCALE)
    out.sum().backward()
    assert not out.any()
    assert not image.grad.any()


@pytest.mark.parametrize("ratio", [0, 2])
def test_deformable_roi_pooling(image, ratio):
    torch.manual_seed(1)
    offset = torch.randn(5, 2, 2, 3, dtype=torch.float64)
    out = deform_roi_pool(image, ROIS, offset, (2, 3), SCALE, ratio, 0.3)
    expected, _ = reference.roi_align(image, ROIS, (2, 3), SCALE, ratio, True, offset=offset, gamma=0.3)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-12)
    still = deform_roi_pool(image, ROIS, None, (2, 3), SCALE, ratio, 0.3)
    torch.testing.assert_close(still, roi_align(image, ROIS, (2, 3), SCALE, ratio, "avg", True))
    image.requires_grad_(), offset.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, o: deform_roi_pool(x, ROIS, o, (2, 3), SCALE, ratio, 0.3), (image, offset), fast_mode=True
    )


CALLS = {
    "average": lambda x, r: roi_align(x, r, (2, 3), SCALE, 0, "avg", True),
    "maximum": lambda x, r: roi_align(x, r, (2, 3), SCALE, 0, "max", True),
    "pool": lambda x, r: roi_pool(x, r, (2, 3), SCALE),
    "deformable": lambda x, r: deform_roi_pool(x, r, None, (2, 3), SCALE),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_regions_strides_and_half_precision(image, name):
    call = CALLS[name]
    plain = image.float().requires_grad_()
    empty = call(plain, ROIS[:0].float())
    assert empty.shape == (0, 3, 2, 3)
    empty.sum().backward()
    assert not plain.grad.any()
    plain.grad = None
    rois = ROIS[:2].float()
    out = call(plain, rois)
    grad = torch.randn(3, 2, 2, 3).transpose(0, 1)
    out.backward(grad)
    strided = image.float().permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1).requires_grad_()
    assert not strided.is_contiguous()
    call(strided, rois).backward(grad)
    torch.testing.assert_close(strided.grad, plain.grad)
    for dtype in (torch.float16, torch.bfloat16):
        half = image.to(dtype).requires_grad_()
        low = call(half, rois)  # regions stay float32, as autocast leaves them
        low.backward(grad.to(dtype))
        assert low.dtype == half.grad.dtype == dtype
        torch.testing.assert_close(low.float(), out, atol=0.05, rtol=0.02)
        # Among nearly equal values another one may be the maximum.
        assert float((half.grad.float() - plain.grad).abs().gt(0.1).float().mean()) < 0.1
