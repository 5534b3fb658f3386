"""Augmentation of images with sentences: only transforms that keep the sentences true and the boxes complete.

Mirroring swaps left and right in the sentences (see ``sides``); if it is ambiguous whether a word means a side, the
image is not mirrored. An image is not cropped if a sentence refers to positions, and crops never cut boxes. Boxes are
xyxy pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from smartclip_det.datasets.sides import mirrored_sentence

Box = Sequence[float]
#: Words that a crop could make untrue, at word boundaries and hyphens: "top-left" has two, "stop" has none.
POSITION_WORDS = (
    "left",
    "right",
    "leftmost",
    "rightmost",
    "top",
    "bottom",
    "topmost",
    "bottommost",
    "upper",
    "lower",
    "uppermost",
    "middle",
    "center",
    "centre",
    "corner",
    "edge",
    "side",
    "above",
    "below",
    "under",
    "over",
    "beneath",
    "between",
    "behind",
    "front",
    "back",
    "nearest",
    "closest",
    "farthest",
    "furthest",
    "far",
    "near",
    "first",
    "second",
    "third",
    "last",
    "highest",
    "lowest",
    "north",
    "south",
    "east",
    "west",
    "largest",
    "biggest",
    "smallest",
    "tallest",
    "shortest",
    "closer",
    "nearer",
    "end",
    "1st",
    "2nd",
    "3rd",
    "4th",
    "fourth",
    "lefthand",
    "righthand",
    "leftest",
    "rightest",
    "leftward",
    "rightward",
    "leftwards",
    "rightwards",
)
_POSITION = re.compile(r"\b(" + "|".join(POSITION_WORDS) + r")\b", re.IGNORECASE)


def names_a_place(sentence: str) -> bool:
    """Whether a sentence contains one of :data:`POSITION_WORDS`, so that a crop could make it untrue."""
    return bool(_POSITION.search(sentence))


def mirror(
    image: Image.Image, boxes: Sequence[Box], sentences: Sequence[str]
) -> tuple[Image.Image, list[list[float]], list[str]] | None:
    """Mirrored image, its boxes, and the sentences with sides swapped; None if a word is ambiguous."""
    turned = [mirrored_sentence(s) for s in sentences]
    known = [s for s in turned if s is not None]
    if len(known) < len(turned):
        return None
    flipped = [[image.width - x2, y1, image.width - x1, y2] for x1, y1, x2, y2 in boxes]
    return ImageOps.mirror(image), flipped, known


def random_crop(
    image: Image.Image,
    boxes: Sequence[Box],
    sentences: Sequence[str],
    rng: np.random.Generator,
    least: float = 0.6,
) -> tuple[Image.Image, list[list[float]]]:
    """Random crop that contains every box, or the unchanged image if a sentence refers to positions.

    Args:
        image: RGB image.
        boxes: all boxes of all sentences.
        sentences: sentences about the image.
        rng: draws the window.
        least: minimum size of the window relative to each side.

    Returns:
        The crop, and the boxes in its pixels.
    """
    if any(names_a_place(s) for s in sentences):
        return image, [list(b) for b in boxes]
    corners = np.asarray(boxes, dtype=float).reshape(-1, 4)
    window = []
    for axis, size in ((0, image.width), (1, image.height)):
        low = corners[:, axis].min() if len(corners) else size / 2
        high = corners[:, axis + 2].max() if len(corners) else size / 2
        first, last = int(max(0, np.floor(low))), int(min(size, np.ceil(high)))
        start = int(rng.integers(0, first + 1))
        stop = int(rng.integers(last, size + 1))
        short = int(np.ceil(least * size)) - (stop - start)
        if short > 0:
            # Extend at both ends, within the image.
            start = max(0, start - short)
            stop = min(size, max(stop, start + int(np.ceil(least * size))))
        window.append((start, max(stop, start + 1)))
    (left, right), (top, bottom) = window
    moved = corners - np.array([left, top, left, top])
    return image.crop((left, top, right, bottom)), moved.tolist()
