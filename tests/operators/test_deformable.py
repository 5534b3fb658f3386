"""Deformable convolution and attention with ``mmcv.ops``: values against loops, gradients by finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack, deform_conv2d, modulated_deform_conv2d
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction as Attention
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

from tests.operators import reference

#: stride, padding, dilation, groups, groups of offsets
GEOMETRY = [
    ((1, 1), (1, 1), (1, 1), 1, 1),
    ((2, 1), (0, 2), (1, 2), 2, 1),
    ((1, 2), (1, 0), (2, 1), 1, 2),
    ((1, 1), (1, 1), (1, 1), 2, 4),
]


def tensors(stride, padding, dilation, groups, deform_groups, count=2):
    torch.manual_seed(0)
    size = [(n + 2 * p - 2 * d - 1) // s + 1 for n, p, d, s in zip((6, 5), padding, dilation, stride, strict=True)]
    double = {"dtype": torch.float64}
    image = torch.randn(count, 4, 6, 5, **double)
    offset = 1.5 * torch.randn(count, deform_groups * 18, *size, **double)
    mask = torch.rand(count, deform_groups * 9, *size, **double)
    return image, offset, mask, torch.randn(2, 4 // groups, 3, 3, **double), torch.randn(2, **double)


@pytest.mark.parametrize("geometry", GEOMETRY)
def test_deformable_convolution(geometry):
    image, offset, mask, weight, bias = tensors(*geometry)
    out = deform_conv2d(image, offset, weight, *geometry)
    np.testing.assert_allclose(out.numpy(), reference.deform_conv(image, offset, weight, *geometry), atol=1e-12)
    out = modulated_deform_conv2d(image, offset, mask, weight, bias, *geometry)
    expected = reference.deform_conv(image, offset, weight, *geometry, mask, bias)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("geometry", GEOMETRY[1:3])
def test_gradients_of_deformable_convolution(geometry):
    image, offset, mask, weight, bias = (t.requires_grad_() for t in tensors(*geometry, count=1))
    check = {"fast_mode": True, "nondet_tol": 1e-12}
    assert torch.autograd.gradcheck(lambda x, o, w: deform_conv2d(x, o, w, *geometry), (image, offset, weight), **check)
    assert torch.autograd.gradcheck(
        lambda x, o, m, w, b: modulated_deform_conv2d(x, o, m, w, b, *geometry),
        (image, offset, mask, weight, bias),
        **check,
    )
    assert torch.autograd.gradcheck(
        lambda x, o, m, w: modulated_deform_conv2d(x, o, m, w, None, *geometry), (image, offset, mask, weight), **check
    )


def test_offsets_larger_than_the_output_are_read_in_order_of_memory():
    """As dynamic heads pass them: mmcv ignores their height and width."""
    image, _, _, weight, bias = tensors(*GEOMETRY[0], count=1)
    geometry = GEOMETRY[0]
    both = torch.randn(1, 27, 8, 9, dtype=torch.float64)
    offset, mask = both[:, :18], both[:, 18:]  # not contiguous
    read = [t.reshape(1, -1)[:, : t.shape[1] * 30].reshape(1, t.shape[1], 6, 5) for t in (offset, mask)]
    out = modulated_deform_conv2d(image, offset, mask, weight, bias, *geometry)
    expected = reference.deform_conv(image, read[0], weight, *geometry, read[1], bias)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-12)
    grads = []
    for maps in ((offset, mask), read):
        leaves = [t.detach().clone(memory_format=torch.channels_last).requires_grad_() for t in maps]
        modulated_deform_conv2d(image, *leaves, weight, bias, *geometry).square().sum().backward()
        grads.append([leaf.grad.reshape(1, -1) for leaf in leaves])
    for large, plain in zip(*grads, strict=True):
        torch.testing.assert_close(large[:, : plain.shape[1]], plain)
        assert not large[:, plain.shape[1] :].any()
    with pytest.raises(RuntimeError, match="offset output dims"):
        modulated_deform_conv2d(image, offset[:, :, :2], mask, weight, bias, *geometry)


def test_the_gradient_of_the_weight_is_added_and_scaled(ours):
    geometry = GEOMETRY[0]
    image, offset, _, weight, _ = tensors(*geometry)
    names = ("dH", "dW", "padH", "padW", "dilationH", "dilationW")
    options = {**dict(zip(names, (1, 1, 1, 1, 1, 1), strict=True)), "kW": 3, "kH": 3, "im2col_step": 1}
    options.update(group=1, deformable_group=1)
    grad = torch.randn(2, 2, 6, 5, dtype=torch.float64)
    once, twice = torch.zeros_like(weight), torch.ones_like(weight)
    for target, scale in ((once, 1), (twice, 2)):
        ours["deform_conv_backward_parameters"](image, offset, grad, target, grad, grad, scale=scale, **options)
    torch.testing.assert_close(twice, 1 + 2 * once)


@pytest.mark.parametrize("layer", [DeformConv2dPack, ModulatedDeformConv2dPack])
def test_layers_start_as_convolutions_and_take_every_precision(layer):
    torch.manual_seed(0)
    module = layer(4, 6, 3, padding=1, bias=False)
    image = torch.randn(2, 4, 5, 7)
    plain = torch.nn.functional.conv2d(image, module.weight, padding=1)
    share = 0.5 if layer is ModulatedDeformConv2dPack else 1.0  # masks start at sigmoid(0)
    torch.testing.assert_close(module(image), share * plain, atol=1e-5, rtol=1e-5)
    assert module(image[:, :, :2, :2]).shape == (2, 6, 2, 2)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            out = module(image)
        out.float().sum().backward()
        torch.testing.assert_close(out.float(), share * plain, atol=0.05, rtol=0.05)


SHAPES = [(3, 4), (2, 2)]


def attention_inputs(batch=2):
    torch.manual_seed(0)
    double = {"dtype": torch.float64}
    value = torch.randn(batch, 16, 2, 3, **double)
    places = torch.rand(batch, 5, 2, 2, 3, 2, **double) * 1.4 - 0.2  # some outside
    return value, places, torch.rand(batch, 5, 2, 2, 3, **double)


def run(value, places, weights, step=64):
    return Attention.apply(value, torch.tensor(SHAPES), torch.tensor([0, 12]), places, weights, step)


def test_multi_scale_deformable_attention():
    value, places, weights = attention_inputs()
    out = run(value, places, weights)
    np.testing.assert_allclose(out.numpy(), reference.attention(value, SHAPES, places, weights), atol=1e-12)
    torch.testing.assert_close(
        out, multi_scale_deformable_attn_pytorch(value, torch.tensor(SHAPES), places, weights), atol=1e-12, rtol=0
    )
    inputs = tuple(t.requires_grad_() for t in attention_inputs(batch=1))
    assert torch.autograd.gradcheck(run, inputs)


def test_attention_without_queries_in_strides_and_in_half_precision():
    value, places, weights = (t.float().requires_grad_() for t in attention_inputs())
    assert run(value, places[:, :0], weights[:, :0]).shape == (2, 0, 6)
    out = run(value, places, weights)
    out.sum().backward()
    strided = value.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    run(strided, places.detach(), weights.detach()).sum().backward()
    torch.testing.assert_close(strided.grad, value.grad)
    for dtype in (torch.float16, torch.bfloat16):
        half = value.detach().to(dtype).requires_grad_()
        low = run(half, places.detach(), weights.detach())
        low.sum().backward()
        assert low.dtype == half.grad.dtype == dtype
        torch.testing.assert_close(low.float(), out, atol=0.1, rtol=0.1)
