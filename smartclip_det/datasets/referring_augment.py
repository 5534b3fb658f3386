"""Augmentation of an image with sentences about it: what the words allow, and boxes that stay whole.

Mirroring exchanges the words of side in the sentences (see ``sides``); where one of them may be a side or not, the
image stays. A crop is refused when a sentence speaks of places, or when a box would be cut. Boxes are xyxy pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from smartclip_det.datasets.sides import mirrored_sentence

Box = Sequence[float]
#: Words that a crop could make untrue. Hyphens and word ends bound them: "top-left" has two, "stop" has none.
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
    """Whether a sentence holds one of :data:`POSITION_WORDS`, so that a crop could make it untrue."""
    return bool(_POSITION.search(sentence))


def mirror(
    image: Image.Image, boxes: Sequence[Box], sentences: Sequence[str]
) -> tuple[Image.Image, list[list[float]], list[str]] | None:
    """The mirrored image, its boxes, and the sentences with their sides exchanged; None where a word is not known."""
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
    """A crop that keeps every box whole, or the image as it is when a sentence names a place.

    Args:
        image: RGB image.
        boxes: all boxes of all sentences.
        sentences: what is said of the image.
        rng: draws the window.
        least: smallest share of each side that is kept.

    Returns:
        The window, and the boxes in its pixels.
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
            # Widened at both ends, as far as the image goes.
            start = max(0, start - short)
            stop = min(size, max(stop, start + int(np.ceil(least * size))))
        window.append((start, max(stop, start + 1)))
    (left, right), (top, bottom) = window
    moved = corners - np.array([left, top, left, top])
    return image.crop((left, top, right, bottom)), moved.tolist()
