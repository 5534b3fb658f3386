"""Shapes, colours and textures, and how an object is drawn.

Shape letters: H W pixels. A shape is drawn at four times the size and averaged; its mask is where at least half of a
pixel is covered, so boxes, masks and pixels agree exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

SUPERSAMPLE = 4

#: Colour names and RGB values. Grey-scale images contain only the last three.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 38, 38),
    "green": (40, 150, 60),
    "blue": (40, 80, 215),
    "yellow": (240, 210, 40),
    "purple": (130, 50, 170),
    "orange": (245, 130, 30),
    "pink": (245, 130, 180),
    "black": (25, 25, 25),
    "gray": (128, 128, 128),
    "white": (245, 245, 245),
}
GREYS = ("black", "gray", "white")
TEXTURES = ("plain", "striped", "dotted", "checked")
BASE_SHAPES = (
    "circle",
    "square",
    "triangle",
    "pentagon",
    "star",
    "heart",
    "cross",
    "ring",
    "diamond",
    "trapezoid",
    "arch",
    "hourglass",
)
NOVEL_SHAPES = ("hexagon", "arrow", "crescent", "bolt", "drop", "semicircle")
SHAPES = BASE_SHAPES + NOVEL_SHAPES


def _regular(corners: int, inner: float = 1.0, turn: float = -0.5) -> np.ndarray:
    """Corners of a regular polygon, or of a star if ``inner`` < 1; ``turn`` in half circles."""
    count = corners * (2 if inner < 1 else 1)
    angles = (np.arange(count) * 2 / count + turn) * math.pi
    radius = np.where(np.arange(count) % 2 == 0, 1.0, inner) if inner < 1 else np.ones(count)
    return np.stack([np.cos(angles) * radius, np.sin(angles) * radius], axis=1)


def _arc(start: float, end: float, radius: float = 1.0, centre: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    angles = np.linspace(start, end, 40) * math.pi
    return np.stack([np.cos(angles) * radius + centre[0], np.sin(angles) * radius + centre[1]], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 80)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x / 17, (y + 2) / 17], axis=1)


def _points(*pairs: tuple[float, float]) -> np.ndarray:
    return np.array(pairs, dtype=float)


#: Outlines in [-1, 1] x [-1, 1], y down. A ring is a circle with a hole.
OUTLINES: dict[str, Callable[[], np.ndarray]] = {
    "circle": lambda: _arc(0, 2),
    "ring": lambda: _arc(0, 2),
    "square": lambda: _points((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "triangle": lambda: _regular(3),
    "pentagon": lambda: _regular(5),
    "hexagon": lambda: _regular(6, turn=0.0),
    "star": lambda: _regular(5, inner=0.42),
    "heart": _heart,
    "cross": lambda: _points(
        (-0.3, -1),
        (0.3, -1),
        (0.3, -0.3),
        (1, -0.3),
        (1, 0.3),
        (0.3, 0.3),
        (0.3, 1),
        (-0.3, 1),
        (-0.3, 0.3),
        (-1, 0.3),
        (-1, -0.3),
        (-0.3, -0.3),
    ),
    "diamond": lambda: _points((0, -1), (0.65, 0), (0, 1), (-0.65, 0)),
    "trapezoid": lambda: _points((-0.5, -0.6), (0.5, -0.6), (1, 0.6), (-1, 0.6)),
    "arch": lambda: np.concatenate(
        [_arc(1, 2, 0.9), _points((0.9, 0.9), (0.4, 0.9)), _arc(2, 1, 0.4), _points((-0.4, 0.9), (-0.9, 0.9))]
    ),
    "hourglass": lambda: _points((-0.8, -1), (0.8, -1), (0.12, 0), (0.8, 1), (-0.8, 1), (-0.12, 0)),
    "arrow": lambda: _points((-1, -0.25), (0.15, -0.25), (0.15, -0.7), (1, 0), (0.15, 0.7), (0.15, 0.25), (-1, 0.25)),
    "crescent": lambda: np.concatenate([_arc(0.3, 1.7), _arc(1.62, 0.38, 0.78, (0.42, 0.0))]),
    "bolt": lambda: _points((0.25, -1), (-0.65, 0.15), (-0.05, 0.15), (-0.3, 1), (0.65, -0.25), (0.05, -0.25)),
    "drop": lambda: np.concatenate([_points((0, -1)), _arc(-0.12, 1.12, 0.66, (0.0, 0.34))]),
    "semicircle": lambda: _arc(1, 2, 1.0, (0.0, 0.5)),
}


def shape_coverage(shape: str, size: tuple[int, int], centre: tuple[float, float], radius: float) -> np.ndarray:
    """``[H, W]`` coverage of each pixel, in [0, 1].

    Args:
        shape: one of :data:`SHAPES`.
        size: (height, width) of the canvas.
        centre: (x, y) in pixels.
        radius: half the extent in pixels.
    """
    k = SUPERSAMPLE
    canvas = np.zeros((size[0] * k, size[1] * k), dtype=np.float32)
    points = (OUTLINES[shape]() * radius + np.array(centre)) * k
    cv2.fillPoly(canvas, [np.round(points).astype(np.int32)], 1)
    if shape == "ring":
        inner = (OUTLINES[shape]() * radius * 0.5 + np.array(centre)) * k
        cv2.fillPoly(canvas, [np.round(inner).astype(np.int32)], 0)
    # Exact: sums of ones, divided by a power of two.
    return cv2.resize(canvas, size[::-1], interpolation=cv2.INTER_AREA).astype(float)


def texture_weights(texture: str, size: tuple[int, int], radius: float) -> np.ndarray:
    """``[H, W]`` weight of the object's own colour; the rest is a darker (or, for black, a lighter) colour."""
    y, x = np.mgrid[: size[0], : size[1]]
    step = max(2.0, radius / 3)
    if texture == "striped":
        return (((x + y) // step) % 2 == 0).astype(float)
    if texture == "dotted":
        return (((x % (2 * step)) - step) ** 2 + ((y % (2 * step)) - step) ** 2 > (0.5 * step) ** 2).astype(float)
    if texture == "checked":
        return ((x // step + y // step) % 2 == 0).astype(float)
    return np.ones(size)


def paint(canvas: np.ndarray, coverage: np.ndarray, colour: str, texture: str, radius: float) -> None:
    """Paint one object onto ``[H, W, 3]`` float RGB, in place."""
    own = np.array(COLOURS[colour], dtype=float)
    other = own * 0.6 if own.mean() > 60 else own + 70
    weights = texture_weights(texture, coverage.shape, radius)[..., None]
    body = weights * own + (1 - weights) * other
    canvas[:] = coverage[..., None] * body + (1 - coverage[..., None]) * canvas
