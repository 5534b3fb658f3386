"""Resizing of position embeddings to other image grids and text lengths.

Shape letters: W tower width, L tokens, h w grid cells.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from smartclip_det.core.errors import UserError

#: Text positions that Long-CLIP (arXiv 2403.15378, section 3.1) leaves unchanged.
KEPT_POSITIONS = 20


def resize_image_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize ``[1 + g * g, W]`` (class token first, square grid) to ``[1 + h * w, W]``.

    Antialiased bicubic interpolation in fp32, as in open_clip. The class row is copied; at the native grid the table is
    returned unchanged.

    Raises:
        UserError: if the table is not one class row plus a square grid.
    """
    side = math.isqrt(table.shape[0] - 1)
    if side * side + 1 != table.shape[0]:
        raise UserError(f"A position table of {table.shape[0]} rows is not 1 + a square grid.")
    if grid == (side, side):
        return table
    cells = table[1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    cells = functional.interpolate(cells, size=grid, mode="bicubic", align_corners=False, antialias=True)
    cells = cells.permute(0, 2, 3, 1).reshape(grid[0] * grid[1], -1).to(table.dtype)
    return torch.cat([table[:1], cells])


def stretch_text_positions(table: Tensor, keep: int = KEPT_POSITIONS, ratio: int = 4) -> Tensor:
    """Stretch ``[77, W]`` text positions to ``[248, W]`` as in Long-CLIP (arXiv 2403.15378, section 3.1).

    The first ``keep`` rows are copied. Each later row i yields ``ratio`` rows, interpolated linearly between rows i and
    i + 1; the last row is extrapolated along the last difference.

    Args:
        table: ``[L, W]`` with L > keep + 1.
        keep: number of rows that are copied.
        ratio: number of rows that each later row yields.

    Returns:
        ``[keep + ratio * (L - keep), W]`` in the dtype of ``table``, computed in fp32.
    """
    if table.shape[0] < keep + 2:
        raise UserError(f"Stretching needs more than {keep + 1} position rows; given {table.shape[0]}.")
    rows = table[keep:].float()
    steps = torch.cat([rows[1:] - rows[:-1], rows[-1:] - rows[-2:-1]])
    fractions = torch.arange(ratio, device=table.device).view(1, ratio, 1) / ratio
    stretched = rows.unsqueeze(1) + fractions * steps.unsqueeze(1)
    return torch.cat([table[:keep], stretched.flatten(0, 1).to(table.dtype)])


def padded_size(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """The smallest (height, width) in pixels that holds ``size`` in whole patches."""
    return math.ceil(size[0] / patch) * patch, math.ceil(size[1] / patch) * patch
