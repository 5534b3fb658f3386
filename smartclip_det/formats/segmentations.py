"""COCO segmentations (run lengths, packed or not, and polygons) as pixels.

Shape letters: H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from smartclip_det.core.errors import UserError


def whole_mask(segmentations: Sequence[Any], size: tuple[int, int]) -> np.ndarray:
    """``[H, W]`` bool: the union of segmentations; overlapping parts of a polygon count once."""
    out = np.zeros(size, dtype=bool)
    for s in segmentations:
        if isinstance(s, list):
            rle = coco_mask.merge(coco_mask.frPyObjects(s, *size))
        else:
            rle = coco_mask.frPyObjects(s, *size) if isinstance(s["counts"], list) else s
        decoded = coco_mask.decode(rle).astype(bool)
        if decoded.shape != size:
            raise UserError(f"A mask of {decoded.shape} on an image of {size} (height, width).")
        out |= decoded
    return out
