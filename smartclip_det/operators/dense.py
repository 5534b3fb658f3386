"""Feature-map operators: CARAFE, masked convolution, SyncBN; and mmcv's build information."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812

__all__ = [
    "carafe_backward",
    "carafe_forward",
    "carafe_naive_backward",
    "carafe_naive_forward",
    "get_compiler_version",
    "get_compiling_cuda_version",
    "masked_col2im_forward",
    "masked_im2col_forward",
    "sync_bn_backward_data",
    "sync_bn_backward_param",
    "sync_bn_forward_mean",
    "sync_bn_forward_output",
    "sync_bn_forward_var",
]


def get_compiler_version() -> str:
    """Build information of ``mmcv.ops``: nothing is compiled."""
    return "none (operators by torchvision and torch)"


def get_compiling_cuda_version() -> str:
    """What mmcv reports without CUDA."""
    return "not available"


def _shifts(
    features: torch.Tensor, masks: torch.Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor]]:
    """Row, column, shifted features [B, G, C/G, h, 1, w, 1] and masks [B, G, 1, h, s, w, s] of each kernel position."""
    batch, channels, h, w = features.shape
    half = (kernel_size - 1) // 2
    padded = F.pad(features, (half, half, half, half))
    cut = masks.view(batch, group_size, kernel_size, kernel_size, 1, h, scale_factor, w, scale_factor)
    for y in range(kernel_size):
        for x in range(kernel_size):
            shifted = padded[:, :, y : y + h, x : x + w]
            yield y, x, shifted.reshape(batch, group_size, channels // group_size, h, 1, w, 1), cut[:, :, y, x]


def carafe_naive_forward(
    features: torch.Tensor,
    masks: torch.Tensor,
    output: torch.Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Upsample ``features`` [B, C, h, w] into ``output`` [B, C, s * h, s * w] with CARAFE (arXiv 1905.02188).

    Each output pixel is the sum of ``kernel_size`` squared neighbours, weighted by ``masks``
    [B, groups * kernel_size ** 2, s * h, s * w].
    """
    batch, channels, h, w = features.shape
    total = features.new_zeros(batch, group_size, channels // group_size, h, scale_factor, w, scale_factor)
    for _, _, shifted, mask in _shifts(features, masks.contiguous(), kernel_size, group_size, scale_factor):
        total.addcmul_(shifted, mask)
    output.copy_(total.view_as(output))


def carafe_naive_backward(
    grad_output: torch.Tensor,
    features: torch.Tensor,
    masks: torch.Tensor,
    grad_input: torch.Tensor,
    grad_masks: torch.Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Gradients of :func:`carafe_naive_forward`."""
    batch, channels, h, w = features.shape
    grad = grad_output.reshape(batch, group_size, channels // group_size, h, scale_factor, w, scale_factor)
    half = (kernel_size - 1) // 2
    padded = features.new_zeros(batch, channels, h + 2 * half, w + 2 * half)
    shape = (batch, group_size, kernel_size, kernel_size, h, scale_factor, w, scale_factor)
    masks_grad = grad_masks.new_zeros(shape)
    for y, x, shifted, mask in _shifts(features, masks.contiguous(), kernel_size, group_size, scale_factor):
        padded[:, :, y : y + h, x : x + w] += (grad * mask).sum((4, 6)).view_as(features)
        masks_grad[:, :, y, x] = (grad * shifted).sum(2)
    grad_input.copy_(padded[:, :, half : half + h, half : half + w])
    grad_masks.copy_(masks_grad.view_as(grad_masks))


def carafe_forward(
    features: torch.Tensor,
    masks: torch.Tensor,
    rfeatures: torch.Tensor,
    routput: torch.Tensor,
    rmasks: torch.Tensor,
    output: torch.Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Like :func:`carafe_naive_forward`; ``rfeatures`` saves the features for :func:`carafe_backward`."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    top_grad: torch.Tensor,
    rfeatures: torch.Tensor,
    masks: torch.Tensor,
    rtop_grad: torch.Tensor,
    rbottom_grad_hs: torch.Tensor,
    rbottom_grad: torch.Tensor,
    rmask_grad: torch.Tensor,
    bottom_grad: torch.Tensor,
    mask_grad: torch.Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Gradients of :func:`carafe_forward`; tensors whose names begin with r are unused workspace."""
    carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor)


def masked_im2col_forward(
    im: torch.Tensor,
    mask_h_idx: torch.Tensor,
    mask_w_idx: torch.Tensor,
    col: torch.Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Write the windows of ``im`` [1, C, H, W] at M positions into ``col`` [C * kernel_h * kernel_w, M]."""
    padded = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows, columns].reshape(col.shape))


def masked_col2im_forward(
    col: torch.Tensor,
    mask_h_idx: torch.Tensor,
    mask_w_idx: torch.Tensor,
    im: torch.Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Write ``col`` [C, M] to M positions of ``im`` [1, C, H, W]."""
    im[0][:, mask_h_idx, mask_w_idx] = col.to(im.dtype)


def sync_bn_forward_mean(input: torch.Tensor, mean: torch.Tensor) -> None:
    """Write the mean of each channel of ``input`` [B, C, L] into ``mean`` [C]; ``mmcv.ops`` reduces over processes."""
    mean.copy_(input.to(mean.dtype).mean((0, 2)))


def sync_bn_forward_var(input: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> None:
    """Write the mean squared deviation of each channel from ``mean`` [C] into ``var`` [C]."""
    var.copy_((input.to(mean.dtype) - mean[:, None]).square().mean((0, 2)))


def sync_bn_forward_output(
    input: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    norm: torch.Tensor,
    std: torch.Tensor,
    output: torch.Tensor,
    eps: float,
    momentum: torch.Tensor | float,
    group_size: int,
) -> None:
    """Write the normalised and scaled features and the deviation ``std`` [C], and update the running statistics."""
    std.copy_((var + eps).sqrt())
    norm.copy_((input.to(norm.dtype) - mean[:, None]) / std[:, None])
    output.copy_(norm * weight[:, None] + bias[:, None])
    if running_mean is None or running_var is None:
        return
    momentum = float(momentum)
    count = input.shape[0] * input.shape[2] * group_size
    unbiased = var * (count / (count - 1)) if count > 1 else var
    running_mean.mul_(1 - momentum).add_(mean.to(running_mean.dtype), alpha=momentum)
    running_var.mul_(1 - momentum).add_(unbiased.to(running_var.dtype), alpha=momentum)


def sync_bn_backward_param(
    grad_output: torch.Tensor, norm: torch.Tensor, grad_weight: torch.Tensor, grad_bias: torch.Tensor
) -> None:
    """Write the gradients of weight and bias [C]."""
    grad = grad_output.to(norm.dtype)
    grad_weight.copy_((grad * norm).sum((0, 2)))
    grad_bias.copy_(grad.sum((0, 2)))


def sync_bn_backward_data(
    grad_output: torch.Tensor,
    weight: torch.Tensor,
    grad_weight: torch.Tensor,
    grad_bias: torch.Tensor,
    norm: torch.Tensor,
    std: torch.Tensor,
    grad_input: torch.Tensor,
) -> None:
    """Write the gradient of the input, given those of weight and bias."""
    count = norm.shape[0] * norm.shape[2]
    through = (grad_weight[:, None] * norm + grad_bias[:, None]) / count
    grad_input.copy_((grad_output.to(norm.dtype) - through) * (weight / std)[:, None])
