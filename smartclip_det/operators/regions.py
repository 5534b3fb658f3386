"""Pooling of regions: RoIAlign and RoIPool. Regions [R, 5] are the image's index and an xyxy box in pixels.

Every function writes into the tensors that ``mmcv.ops`` has made for its results.
"""

from __future__ import annotations

import torch

__all__ = ["roi_align_backward", "roi_align_forward", "roi_pool_backward", "roi_pool_forward"]

MAXIMUM, AVERAGE = 0, 1


def at_least_single(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors in their common type, at least float32: torchvision has no bfloat16, and half spoils coordinates."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype).contiguous() for tensor in tensors]


def roi_align_forward(
    input: torch.Tensor,
    rois: torch.Tensor,
    output: torch.Tensor,
    argmax_y: torch.Tensor,
    argmax_x: torch.Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool ``input`` [B, C, H, W] into ``output`` [R, C, h, w]: the average of samples, or the highest one."""
    image, boxes = at_least_single(input, rois)
    output.copy_(
        torch.ops.torchvision.roi_align(
            image, boxes, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
        )
    )


def roi_align_backward(
    grad_output: torch.Tensor,
    rois: torch.Tensor,
    argmax_y: torch.Tensor,
    argmax_x: torch.Tensor,
    grad_input: torch.Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of :func:`roi_align_forward` with respect to its input."""
    grad, boxes = at_least_single(grad_output, rois)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad, boxes, spatial_scale, aligned_height, aligned_width, *grad_input.shape, sampling_ratio, aligned
        )
    )


def roi_pool_forward(
    input: torch.Tensor,
    rois: torch.Tensor,
    output: torch.Tensor,
    argmax: torch.Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Highest value of each bin of each region, with its flat position in the map (-1 for an empty bin)."""
    image, boxes = at_least_single(input, rois)
    pooled, places = torch.ops.torchvision.roi_pool(image, boxes, spatial_scale, pooled_height, pooled_width)
    output.copy_(pooled)
    argmax.copy_(places)


def roi_pool_backward(
    grad_output: torch.Tensor,
    rois: torch.Tensor,
    argmax: torch.Tensor,
    grad_input: torch.Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Gradient of :func:`roi_pool_forward` with respect to its input."""
    grad, boxes = at_least_single(grad_output, rois)
    grad_input.copy_(
        torch.ops.torchvision._roi_pool_backward(
            grad, boxes, argmax, spatial_scale, pooled_height, pooled_width, *grad_input.shape
        )
    )
