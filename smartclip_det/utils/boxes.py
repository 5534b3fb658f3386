"""Boxes from one corner form to the other. Pixels, continuous coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Box = tuple[float, float, float, float]


def to_xyxy(xywh: Sequence[float]) -> Box:
    """Both corners of ``x, y, width, height``."""
    x, y, w, h = (float(v) for v in xywh)
    return (x, y, x + w, y + h)


def to_xywh(xyxy: Sequence[float]) -> Box:
    """``x, y, width, height`` of two corners."""
    x1, y1, x2, y2 = (float(v) for v in xyxy)
    return (x1, y1, x2 - x1, y2 - y1)


def corners_of(xywh: np.ndarray) -> np.ndarray:
    """``[N, 4]`` float64 xyxy of ``[N, 4]`` xywh; the input stays as it is."""
    boxes = np.array(xywh, dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def sides_of(xyxy: np.ndarray) -> np.ndarray:
    """``[N, 4]`` float64 xywh of ``[N, 4]`` xyxy; the input stays as it is."""
    boxes = np.array(xyxy, dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes
