"""Region pooling: RoIAlign, RoIPool and deformable RoI pooling.

Regions [R, 5] are an image index and an xyxy box in pixels. Every function writes into tensors that ``mmcv.ops``
has allocated for the results.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torchvision  # noqa: F401  (brings torch.ops.torchvision)

__all__ = [
    "deform_roi_pool_backward",
    "deform_roi_pool_forward",
    "roi_align_backward",
    "roi_align_forward",
    "roi_pool_backward",
    "roi_pool_forward",
]

MAXIMUM, AVERAGE = 0, 1


def at_least_single(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Tensors in their common dtype, at least float32: torchvision lacks bfloat16, and half is too coarse for boxes."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype).contiguous() for tensor in tensors]


def _corners(y: torch.Tensor, x: torch.Tensor, height: int, width: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Flat index and weight of the four pixels around each point; weights are 0 for points outside the map.

    A point up to one pixel outside the centre of the first pixel takes the border value (Detectron's rule).
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.detach().floor(), x.detach().floor()
    for down in (0, 1):
        for right in (0, 1):
            rows, columns = (top + down).clamp(max=height - 1), (left + right).clamp(max=width - 1)
            weight = (y - top if down else 1 - (y - top)) * (x - left if right else 1 - (x - left))
            yield (rows * width + columns).long(), weight * inside


def _sample(image: torch.Tensor, index: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Values [..., C] of ``image`` [B, C, H, W] at points [...], bilinear."""
    _, channels, height, width = image.shape
    pixels = image.permute(0, 2, 3, 1).reshape(-1, channels)
    total = image.new_zeros(*y.shape, channels)
    for place, weight in _corners(y, x, height, width):
        total = total + pixels[index * height * width + place] * weight[..., None]
    return total


def _grids(
    rois: torch.Tensor, scale: float, shift: float, least: float, bins: tuple[int, int], sampling_ratio: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Group regions by samples (gh, gw): rows of ``rois``, sizes [n, 2], y [n, h, gh] and x [n, w, gw]."""
    start = rois[:, [2, 1]] * scale - shift
    size = (rois[:, [4, 3]] * scale - shift - start).clamp(min=least)
    pooled = torch.tensor(bins, device=rois.device)
    counts = torch.full_like(size, sampling_ratio) if sampling_ratio > 0 else (size / pooled).ceil().clamp(min=0)
    for gh, gw in counts.unique(dim=0).long().tolist():
        rows = ((counts[:, 0] == gh) & (counts[:, 1] == gw)).nonzero()[:, 0]
        axes = []
        for axis, samples in enumerate((gh, gw)):
            step = size[rows, axis, None, None] / bins[axis]
            within = (torch.arange(samples, device=rois.device, dtype=rois.dtype) + 0.5) / max(samples, 1)
            cells = torch.arange(bins[axis], device=rois.device, dtype=rois.dtype)[:, None]
            axes.append(start[rows, axis, None, None] + (cells + within) * step)
        yield rows, size[rows], axes[0], axes[1]


def _align_by_maximum(
    image: torch.Tensor, rois: torch.Tensor, bins: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Maximum sample of each bin [R, C, h, w] and its y and x; 0 at (-1, -1) for regions without area."""
    shape = (len(rois), image.shape[1], *bins)
    best, best_y, best_x = image.new_zeros(shape), image.new_full(shape, -1), image.new_full(shape, -1)
    shift, least = (0.5, -torch.inf) if aligned else (0.0, 1.0)
    for rows, _, ys, xs in _grids(rois, scale, shift, least, bins, sampling_ratio):
        if 0 in (ys.shape[2], xs.shape[2]):
            continue
        y = ys[:, :, None, :, None].expand(-1, -1, bins[1], -1, xs.shape[2])
        x = xs[:, None, :, None, :].expand(-1, bins[0], -1, ys.shape[2], -1)
        values = _sample(image, rois[rows, 0].long()[:, None, None, None, None], y, x).flatten(3, 4)
        top, at = values.max(3)
        best[rows] = top.permute(0, 3, 1, 2)
        best_y[rows] = y.flatten(3).gather(3, at).permute(0, 3, 1, 2)
        best_x[rows] = x.flatten(3).gather(3, at).permute(0, 3, 1, 2)
    return best, best_y, best_x


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
    """Pool ``input`` [B, C, H, W] into ``output`` [R, C, h, w]: average or maximum of the samples.

    The location of the maximum is written to ``argmax_y`` and ``argmax_x``. Regions without area give 0 in both modes.
    """
    image, boxes = at_least_single(input, rois)
    if pool_mode == AVERAGE:
        options = (spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned)
        output.copy_(torch.ops.torchvision.roi_align(image, boxes, *options))
        return
    results = _align_by_maximum(image, boxes, (aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned)
    for target, values in zip((output, argmax_y, argmax_x), results, strict=True):
        target.copy_(values)


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
    if pool_mode == AVERAGE:
        options = (spatial_scale, aligned_height, aligned_width, *grad_input.shape, sampling_ratio, aligned)
        grad_input.copy_(torch.ops.torchvision._roi_align_backward(grad, boxes, *options))
        return
    _, channels, height, width = grad_input.shape
    y, x = (places.to(grad.dtype) for places in (argmax_y, argmax_x))
    plane = boxes[:, 0].long()[:, None] * channels + torch.arange(channels, device=boxes.device)
    total = grad.new_zeros(grad_input.numel())
    for place, weight in _corners(y, x, height, width):
        flat = plane[:, :, None, None] * height * width + place
        total.index_add_(0, flat.flatten(), (grad * weight * (y != -1)).flatten())
    grad_input.copy_(total.view_as(grad_input))


def _bins(
    rois: torch.Tensor, height: int, width: int, pooled: tuple[int, int], scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each bin as a region of whole pixels [R * h * w, 5] (index, first and last pixel), and whether it is empty."""
    edges = []
    for axis, limit, count in ((2, height, pooled[0]), (1, width, pooled[1])):
        start = rois[:, axis, None] * scale
        size = (rois[:, axis + 2, None] + 1) * scale - start
        cells = torch.arange(count, device=rois.device, dtype=rois.dtype)
        step = size / count
        first = (cells * step + start).floor().clamp(0, limit)
        end = ((cells + 1) * step + start).ceil().clamp(0, limit)
        edges.append((first, torch.where(size > 0, end, first)))
    (y1, y2), (x1, x2) = edges
    shape = (len(rois), *pooled)
    columns = [rois[:, :1, None], x1[:, None, :], y1[:, :, None], x2[:, None, :] - 1, y2[:, :, None] - 1]
    regions = torch.stack([column.expand(shape) for column in columns], dim=-1).view(-1, 5)
    return regions, (regions[:, 3] < regions[:, 1]) | (regions[:, 4] < regions[:, 2])


def roi_pool_forward(
    input: torch.Tensor,
    rois: torch.Tensor,
    output: torch.Tensor,
    argmax: torch.Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Maximum of each bin of each region, with its flat index in the map; 0 at -1 for an empty bin.

    torchvision rounds the corners of a region to pixels and mmcv does not, so each bin is passed as a separate region.
    """
    image, boxes = at_least_single(input, rois)
    height, width = image.shape[2:]
    regions, empty = _bins(boxes, height, width, (pooled_height, pooled_width), spatial_scale)
    values, places = torch.ops.torchvision.roi_pool(image, regions, 1.0, 1, 1)
    shape = (len(rois), pooled_height, pooled_width, image.shape[1])
    output.copy_(values.flatten(1).masked_fill(empty[:, None], 0).view(shape).permute(0, 3, 1, 2))
    argmax.copy_(places.flatten(1).masked_fill(empty[:, None], -1).view(shape).permute(0, 3, 1, 2))


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
    (grad,) = at_least_single(grad_output)
    _, channels, height, width = grad_input.shape
    plane = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=rois.device)
    flat = plane[:, :, None, None] * height * width + argmax.clamp(min=0)
    total = grad.new_zeros(grad_input.numel())
    total.index_add_(0, flat.flatten(), (grad * (argmax >= 0)).flatten())
    grad_input.copy_(total.view_as(grad_input))


def _pool_with_offsets(
    image: torch.Tensor,
    rois: torch.Tensor,
    offset: torch.Tensor,
    bins: tuple[int, int],
    scale: float,
    sampling_ratio: int,
    gamma: float,
) -> torch.Tensor:
    pooled = image.new_zeros(len(rois), image.shape[1], *bins)
    for rows, size, ys, xs in _grids(rois, scale, 0.5, -torch.inf, bins, sampling_ratio):
        if 0 in (ys.shape[2], xs.shape[2]):
            continue
        y, x = ys[:, :, None, :, None], xs[:, None, :, None, :]
        if offset.numel():
            moves = gamma * size.flip(1)[:, :, None, None] * offset[rows]  # x first
            y, x = y + moves[:, 1, :, :, None, None], x + moves[:, 0, :, :, None, None]
        y, x = torch.broadcast_tensors(y, x)
        values = _sample(image, rois[rows, 0].long()[:, None, None, None, None], y, x).mean((3, 4))
        pooled = pooled.index_put((rows,), values.permute(0, 3, 1, 2))
    return pooled


def deform_roi_pool_forward(
    input: torch.Tensor,
    rois: torch.Tensor,
    offset: torch.Tensor,
    output: torch.Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """RoIAlign with bins moved by ``offset`` [R, 2, h, w] (x, y; may be empty) times ``gamma`` times region size."""
    image, boxes, moves = at_least_single(input, rois, offset)
    bins = (pooled_height, pooled_width)
    output.copy_(_pool_with_offsets(image, boxes, moves, bins, spatial_scale, sampling_ratio, gamma))


def deform_roi_pool_backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    rois: torch.Tensor,
    offset: torch.Tensor,
    grad_input: torch.Tensor,
    grad_offset: torch.Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Gradients of :func:`deform_roi_pool_forward`, by repeating the forward pass."""
    image, boxes, moves = (tensor.detach() for tensor in at_least_single(input, rois, offset))
    inputs = [image.requires_grad_(), *([moves.requires_grad_()] if moves.numel() else [])]
    with torch.enable_grad():
        bins = (pooled_height, pooled_width)
        out = _pool_with_offsets(image, boxes, moves, bins, spatial_scale, sampling_ratio, gamma)
    if not out.requires_grad:  # no region has a sample
        return
    grads = torch.autograd.grad(out, inputs, grad_output.to(out.dtype))
    for target, grad in zip((grad_input, grad_offset), grads, strict=False):
        target.copy_(grad)
