"""Conversion between xyxy and xywh boxes. Pixels, continuous coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Box = tuple[float, float, float, float]


def to_xyxy(xywh: Sequence[float]) -> Box:
    """Box ``x, y, width, height`` as xyxy."""
    x, y, w, h = (float(v) for v in xywh)
    return (x, y, x + w, y + h)


def to_xywh(xyxy: Sequence[float]) -> Box:
    """Box xyxy as ``x, y, width, height``."""
    x1, y1, x2, y2 = (float(v) for v in xyxy)
    return (x1, y1, x2 - x1, y2 - y1)


def corners_of(xywh: np.ndarray) -> np.ndarray:
    """``[N, 4]`` float64 xyxy of ``[N, 4]`` xywh; the input is not modified."""
    boxes = np.array(xywh, dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def sides_of(xyxy: np.ndarray) -> np.ndarray:
    """``[N, 4]`` float64 xywh of ``[N, 4]`` xyxy; the input is not modified."""
    boxes = np.array(xyxy, dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes
