"""Deformable operators: multi-scale deformable attention, deformable convolution v1 and v2."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
import torchvision  # noqa: F401  (brings torch.ops.torchvision)

from smartclip_det.operators.regions import at_least_single

__all__ = [
    "deform_conv_backward_input",
    "deform_conv_backward_parameters",
    "deform_conv_forward",
    "modulated_deform_conv_backward",
    "modulated_deform_conv_forward",
    "ms_deform_attn_backward",
    "ms_deform_attn_forward",
]


def _attend(value: torch.Tensor, shapes: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum over levels of the values sampled at ``locations``; see :func:`ms_deform_attn_forward`."""
    batch, _, heads, width = value.shape
    queries = locations.shape[1]
    sizes = [(int(h), int(w)) for h, w in shapes.tolist()]
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # [B * heads, queries, levels, points, 2]
    weights = weights.transpose(1, 2).flatten(0, 1)
    total = value.new_zeros(batch * heads, width, queries)
    for level, part in enumerate(value.split([h * w for h, w in sizes], dim=1)):
        image = part.permute(0, 2, 3, 1).reshape(batch * heads, width, *sizes[level])
        sampled = F.grid_sample(image, grids[:, :, level], align_corners=False)
        total = total + (sampled * weights[:, None, :, level]).sum(-1)
    return total.view(batch, heads * width, queries).transpose(1, 2).contiguous()


def ms_deform_attn_forward(
    value: torch.Tensor,
    value_spatial_shapes: torch.Tensor,
    value_level_start_index: torch.Tensor,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
    im2col_step: int,
) -> torch.Tensor:
    """Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159).

    Args:
        value: [B, keys, heads, D]; keys of all levels, concatenated.
        value_spatial_shapes: [levels, 2] heights and widths.
        value_level_start_index: unused; levels are contiguous.
        sampling_locations: [B, queries, heads, levels, points, 2], x and y in [0, 1].
        attention_weights: [B, queries, heads, levels, points].
        im2col_step: unused.

    Returns:
        [B, queries, heads * D].
    """
    wide = at_least_single(value, sampling_locations, attention_weights)
    return _attend(wide[0], value_spatial_shapes, wide[1], wide[2]).to(value.dtype)


def ms_deform_attn_backward(
    value: torch.Tensor,
    value_spatial_shapes: torch.Tensor,
    value_level_start_index: torch.Tensor,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
    grad_output: torch.Tensor,
    grad_value: torch.Tensor,
    grad_sampling_loc: torch.Tensor,
    grad_attn_weight: torch.Tensor,
    im2col_step: int,
) -> None:
    """Gradients of :func:`ms_deform_attn_forward`, by repeating the forward pass."""
    wide = [t.detach().requires_grad_() for t in at_least_single(value, sampling_locations, attention_weights)]
    with torch.enable_grad():
        out = _attend(wide[0], value_spatial_shapes, wide[1], wide[2])
    for target, grad in zip(
        (grad_value, grad_sampling_loc, grad_attn_weight),
        torch.autograd.grad(out, wide, grad_output.to(out.dtype)),
        strict=True,
    ):
        target.copy_(grad)


def _arguments(options: dict[str, Any], use_mask: bool) -> tuple[Any, ...]:
    """Stride, padding, dilation and groups in torchvision's order, from either of mmcv's spellings."""
    names = ("dH", "dW", "padH", "padW", "dilationH", "dilationW")
    if "stride_h" in options:
        names = ("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w")
    return (*(options[name] for name in names), options["group"], options["deformable_group"], use_mask)


def _plain(input: torch.Tensor, weight: torch.Tensor, offset: torch.Tensor) -> list[torch.Tensor]:
    """Input, weight and offset, plus the empty mask and zero bias that version 1 does not have."""
    wide = at_least_single(input, weight, offset)
    return [*wide, wide[0].new_zeros(len(input), 1), wide[0].new_zeros(len(weight))]


def deform_conv_forward(
    input: torch.Tensor,
    weight: torch.Tensor,
    offset: torch.Tensor,
    output: torch.Tensor,
    columns: torch.Tensor,
    ones: torch.Tensor,
    **options: Any,
) -> None:
    """Deformable convolution v1 of ``input`` [B, C, H, W]; offsets [B, groups * kh * kw * 2, h, w] are (y, x) pairs.

    ``columns``, ``ones`` and ``im2col_step`` are workspace of the compiled version and unused.
    """
    output.copy_(torch.ops.torchvision.deform_conv2d(*_plain(input, weight, offset), *_arguments(options, False)))


def deform_conv_backward_input(
    input: torch.Tensor,
    offset: torch.Tensor,
    grad_output: torch.Tensor,
    grad_input: torch.Tensor,
    grad_offset: torch.Tensor,
    weight: torch.Tensor,
    columns: torch.Tensor,
    **options: Any,
) -> None:
    """Gradients of :func:`deform_conv_forward` with respect to input and offsets."""
    tensors = _plain(input, weight, offset)
    grads = torch.ops.torchvision._deform_conv2d_backward(
        grad_output.to(tensors[0].dtype), *tensors, *_arguments(options, False)
    )
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])


def deform_conv_backward_parameters(
    input: torch.Tensor,
    offset: torch.Tensor,
    grad_output: torch.Tensor,
    grad_weight: torch.Tensor,
    columns: torch.Tensor,
    ones: torch.Tensor,
    scale: float,
    **options: Any,
) -> None:
    """Add ``scale`` times the gradient of :func:`deform_conv_forward` with respect to the weight.

    The gradient of the weight does not depend on its values, so zeros of its shape are passed.
    """
    tensors = _plain(input, torch.zeros_like(grad_weight), offset)
    grads = torch.ops.torchvision._deform_conv2d_backward(
        grad_output.to(tensors[0].dtype), *tensors, *_arguments(options, False)
    )
    grad_weight.add_(grads[1].to(grad_weight.dtype), alpha=scale)


def _reread(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Reinterpret ``maps`` [B, C, h, w] as maps of ``size`` in memory order; surplus elements are ignored.

    mmcv reads offsets and masks larger than its output this way. Dynamic heads (DyHead) pass such maps, and their
    weights were trained with it.
    """
    if maps.shape[2:] == size or maps.shape[2] * maps.shape[3] < size[0] * size[1]:
        return maps
    return maps.flatten(1)[:, : maps.shape[1] * size[0] * size[1]].unflatten(1, (maps.shape[1], *size))


def _output_size(input: torch.Tensor, weight: torch.Tensor, options: dict[str, Any]) -> tuple[int, int]:
    sizes = []
    for axis, side in ((2, "h"), (3, "w")):
        reach = options[f"dilation_{side}"] * (weight.shape[axis] - 1) + 1
        sizes.append((input.shape[axis] + 2 * options[f"pad_{side}"] - reach) // options[f"stride_{side}"] + 1)
    return sizes[0], sizes[1]


def _modulated(
    input: torch.Tensor,
    weight: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None,
    options: dict[str, Any],
) -> list[torch.Tensor]:
    size = _output_size(input, weight, options)
    # Without a bias, mmcv passes an empty tensor.
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return at_least_single(input, weight, _reread(offset, size), _reread(mask, size), bias)


def modulated_deform_conv_forward(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    ones: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    output: torch.Tensor,
    columns: torch.Tensor,
    with_bias: bool,
    **options: Any,
) -> None:
    """Deformable convolution v2: as v1, with each sample multiplied by ``mask`` [B, groups * kh * kw, h, w]."""
    tensors = _modulated(input, weight, offset, mask, bias if with_bias else None, options)
    output.copy_(torch.ops.torchvision.deform_conv2d(*tensors, *_arguments(options, True)))


def modulated_deform_conv_backward(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    ones: torch.Tensor,
    offset: torch.Tensor,
    mask: torch.Tensor,
    columns: torch.Tensor,
    grad_input: torch.Tensor,
    grad_weight: torch.Tensor,
    grad_bias: torch.Tensor,
    grad_offset: torch.Tensor,
    grad_mask: torch.Tensor,
    grad_output: torch.Tensor,
    with_bias: bool,
    **options: Any,
) -> None:
    """Gradients of :func:`modulated_deform_conv_forward`."""
    tensors = _modulated(input, weight, offset, mask, bias if with_bias else None, options)
    grads = torch.ops.torchvision._deform_conv2d_backward(
        grad_output.to(tensors[0].dtype), *tensors, *_arguments(options, True)
    )
    grad_input.copy_(grads[0])
    grad_weight.copy_(grads[1])
    for target, grad in ((grad_offset, grads[2]), (grad_mask, grads[3])):
        flat = grad.flatten(1)
        target.copy_(F.pad(flat, (0, target.shape[1:].numel() - flat.shape[1])).view_as(target))
    if with_bias:
        grad_bias.copy_(grads[4])
