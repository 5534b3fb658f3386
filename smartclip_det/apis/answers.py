"""What predictors answer: detections of an image, and where a text matches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Detections:
    """Detections of one image, best first.

    Attributes:
        boxes: ``[N, 4]`` xyxy pixels of the original image.
        scores: ``[N]`` in [0, 1].
        labels: ``[N]`` indices into ``names``.
        names: the vocabulary.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def label_names(self) -> list[str]:
        """N names."""
        return [self.names[i] for i in self.labels]

    def above(self, threshold: float) -> Detections:
        """Those that score at least ``threshold``."""
        keep = self.scores >= threshold
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], self.names)

    def to_list(self) -> list[dict[str, Any]]:
        """Plain values for JSON: ``box`` (xyxy), ``score``, ``name``."""
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.label_names, strict=True)
        return [{"box": b, "score": s, "name": n} for b, s, n in rows]


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
