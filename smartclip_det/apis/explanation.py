"""What predictors answer of one text: where it matches the image, and by which dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Explanation:
    """Where and by which dimensions a text matches an image.

    Attributes:
        similarity: ``[h, w]`` masked cosine of each grid cell, -1..1.
        mask: ``[D]`` the text's mask.
        text: the text.
    """

    similarity: np.ndarray
    mask: np.ndarray
    text: str
