"""Detections as columns: six million fit in a few hundred MB, where a list of dicts takes several GB.

Shape letters: N detections.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def id_array(ids: Sequence[Any]) -> np.ndarray:
    """Convert ids to an array without mixing types: the integer 1 and the string "1" stay different."""
    kinds = set(map(type, ids))
    if kinds <= {int}:
        return np.array(ids, dtype=np.int64 if not ids or (min(ids) >= -(2**63) and max(ids) < 2**63) else object)
    return np.array(ids, dtype=None if kinds == {str} else object)


@dataclass
class DetectionColumns(Sequence[dict[str, Any]]):
    """A sequence of COCO results ``{image_id, category_id, bbox, score}`` stored as arrays.

    Attributes:
        image_ids: distinct image ids, indexed by ``images``.
        images: ``[N]`` positions in ``image_ids``.
        categories: ``[N]`` category ids: integers, strings, or both (dtype object).
        boxes: ``[N, 4]`` x, y, width, height in pixels, float64.
        scores: ``[N]`` float64.
    """

    image_ids: list[Any]
    images: np.ndarray
    categories: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray

    @staticmethod
    def from_results(results: Sequence[Mapping[str, Any]]) -> DetectionColumns:
        """Convert checked COCO results; fields other than the four are dropped."""
        if isinstance(results, DetectionColumns):
            return results
        categories = [r["category_id"] for r in results]
        return DetectionColumns.from_arrays(
            [r["image_id"] for r in results],
            id_array(categories),
            np.array([r["bbox"] for r in results], dtype=np.float64).reshape(-1, 4),
            np.array([r["score"] for r in results], dtype=np.float64),
        )

    @staticmethod
    def from_arrays(
        image_ids: Sequence[Any], categories: np.ndarray, boxes: np.ndarray, scores: np.ndarray
    ) -> DetectionColumns:
        """Build columns from arrays, with one image id per detection."""
        place: dict[Any, int] = {}
        images = np.fromiter((place.setdefault(i, len(place)) for i in image_ids), np.int32, len(image_ids))
        return DetectionColumns(list(place), images, categories, boxes, scores)

    @staticmethod
    def cat(parts: Sequence[DetectionColumns]) -> DetectionColumns:
        """Concatenate columns."""
        place: dict[Any, int] = {}
        images = []
        for part in parts:
            where = np.array([place.setdefault(i, len(place)) for i in part.image_ids], dtype=np.int32)
            images.append(where[part.images])
        # NumPy would convert integers to strings in a mixed concatenation.
        mixed = len({p.categories.dtype.kind for p in parts}) > 1
        return DetectionColumns(
            list(place),
            np.concatenate(images),
            np.concatenate([p.categories.astype(object) if mixed else p.categories for p in parts]),
            np.concatenate([p.boxes for p in parts]),
            np.concatenate([p.scores for p in parts]),
        )

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Any) -> Any:
        """Return one result as a dict, or a slice as columns."""
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return next(iter(self.take(np.array([index]))))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield new dicts, which evaluators may modify."""
        rows = zip(
            self.images.tolist(), self.categories.tolist(), self.boxes.tolist(), self.scores.tolist(), strict=True
        )
        for image, category, box, score in rows:
            yield {"image_id": self.image_ids[image], "category_id": category, "bbox": box, "score": score}

    def take(self, rows: np.ndarray) -> DetectionColumns:
        """Select detections by position or boolean mask."""
        return DetectionColumns(
            self.image_ids, self.images[rows], self.categories[rows], self.boxes[rows], self.scores[rows]
        )

    def best_of_each(self, keys: np.ndarray, limit: int) -> DetectionColumns:
        """Select the ``limit`` best of each key; ties keep file order."""
        order = np.lexsort((np.arange(len(self)), -self.scores, keys))
        sorted_keys = keys[order]
        first = np.r_[True, sorted_keys[1:] != sorted_keys[:-1]] if len(order) else np.zeros(0, dtype=bool)
        starts = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
        return self.take(order[np.arange(len(order)) - starts < limit])
