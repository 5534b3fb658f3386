"""What a box is, and the signs of boxes in another form. Shape letters: N boxes; boxes are xywh pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

#: No picture is this large; products of larger numbers leave what a float holds.
LARGEST = 1e100
#: Share of boxes outside of their image that means x1, y1, x2, y2 read as x, y, width, height: by itself, and where
#: every box would be a good one in that form.
MOST, SOME = 0.5, 0.2


def is_number(value: Any) -> bool:
    """Whether a value is a finite number of a size that can be reckoned with."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= LARGEST


def is_box(value: Any) -> bool:
    """Whether a value is four finite numbers."""
    return isinstance(value, list | tuple) and len(value) == 4 and all(is_number(v) for v in value)


def box_problem(value: Any) -> str:
    """What is wrong with an xywh box; empty for nothing. Width and height may be 0."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        return "[x, y, width, height] is needed"
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
        return "four numbers are needed, no texts"
    if not is_box(value):
        return "it holds a number that is not finite"
    if value[2] < 0 or value[3] < 0:
        return "width or height is negative; [x, y, width, height] counts from the upper left corner"
    return ""


def are_boxes(boxes: np.ndarray) -> bool:
    """Whether ``[N, 4]`` boxes are all finite, of a sane size, and without negative sides."""
    return bool((np.abs(boxes) <= LARGEST).all() and (boxes[:, 2:] >= 0).all())


def first_bad_corners(corners: np.ndarray) -> int | None:
    """The first of ``[N, 4]`` xyxy boxes that is not finite or has its corners the wrong way round; None without."""
    corners = np.asarray(corners, dtype=np.float64)
    good = (np.abs(corners) <= LARGEST).all(axis=1) & (corners[:, 2:] >= corners[:, :2]).all(axis=1)
    return None if good.all() else int(np.argmin(good))


def outside(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """``[N]`` True where a box leaves its image by more than a pixel; ``sizes [N, 2]``, infinite where unknown."""
    far = boxes[:, :2] + boxes[:, 2:]
    return (boxes[:, :2] < -1).any(axis=1) & np.isfinite(sizes).all(axis=1) | (far > sizes + 1).any(axis=1)


def fit_as_corners(boxes: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether all boxes would be good ones inside of their images if they were x1, y1, x2, y2."""
    return bool((boxes[:, 2:] > boxes[:, :2]).all() and (boxes[:, 2:] <= sizes + 1).all() and (boxes >= -1).all())


def look_like_corners(count: int, leaving: int, fit: bool) -> bool:
    """Whether ``leaving`` of ``count`` boxes that leave their image tell of corners; ``fit``: all would be good."""
    return leaving > (SOME if fit else MOST) * count
