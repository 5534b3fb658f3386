"""Results of predictors for one text: where it matches the image, and with which dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Explanation:
    """Where a text matches an image, and with which dimensions.

    Attributes:
        similarity: ``[h, w]`` masked cosine of each grid cell, -1..1.
        mask: ``[D]`` the text's mask.
        text: the text.
    """

    similarity: np.ndarray
    mask: np.ndarray
    text: str
