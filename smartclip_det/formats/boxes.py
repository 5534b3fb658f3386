"""Validity of boxes, and heuristics for boxes in another format. Shape letters: N boxes; boxes are xywh pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

#: Larger than any image; products of larger numbers could overflow a float.
LARGEST = 1e100
#: Fraction of boxes outside their image above which boxes are taken for x1, y1, x2, y2: on its own, and if all boxes
#: would be valid in that format.
MOST, SOME = 0.5, 0.2


def is_number(value: Any) -> bool:
    """Whether a value is a finite number of plausible size."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= LARGEST


def is_box(value: Any) -> bool:
    """Whether a value is four finite numbers."""
    return isinstance(value, list | tuple) and len(value) == 4 and all(is_number(v) for v in value)


def box_problem(value: Any) -> str:
    """Describe what is wrong with an xywh box; empty if valid. Width and height may be 0."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        return "expected [x, y, width, height]"
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
        return "expected four numbers, not strings"
    if not is_box(value):
        return "it has a non-finite number"
    if value[2] < 0 or value[3] < 0:
        return "width or height is negative; [x, y, width, height] starts at the upper left corner"
    return ""


def are_boxes(boxes: np.ndarray) -> bool:
    """Whether ``[N, 4]`` boxes are all finite, of plausible size, and without negative sides."""
    return bool((np.abs(boxes) <= LARGEST).all() and (boxes[:, 2:] >= 0).all())


def first_bad_corners(corners: np.ndarray) -> int | None:
    """Return the index of the first xyxy box ``[N, 4]`` that is not finite or has swapped corners.

    None if all are valid.
    """
    corners = np.asarray(corners, dtype=np.float64)
    good = (np.abs(corners) <= LARGEST).all(axis=1) & (corners[:, 2:] >= corners[:, :2]).all(axis=1)
    return None if good.all() else int(np.argmin(good))


def outside(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """``[N]`` True where a box leaves its image by more than a pixel; ``sizes [N, 2]``, infinite where unknown."""
    far = boxes[:, :2] + boxes[:, 2:]
    return (boxes[:, :2] < -1).any(axis=1) & np.isfinite(sizes).all(axis=1) | (far > sizes + 1).any(axis=1)


def fit_as_corners(boxes: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether all boxes would be valid and inside their images if read as x1, y1, x2, y2."""
    return bool((boxes[:, 2:] > boxes[:, :2]).all() and (boxes[:, 2:] <= sizes + 1).all() and (boxes >= -1).all())


def look_like_corners(count: int, leaving: int, fit: bool) -> bool:
    """Whether ``leaving`` of ``count`` boxes outside their image suggest xyxy; ``fit``: all would be valid as xyxy."""
    return leaving > (SOME if fit else MOST) * count
