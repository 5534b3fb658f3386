"""Names and region texts for captioned images, from COCO annotations.

Shape letters: R regions.
"""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from smartclip_det.core.errors import UserError, unknown_names
from smartclip_det.core.prompts import fill
from smartclip_det.datasets.sides import mirrored_sentence
from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.formats.captions import CaptionRecord
from smartclip_det.utils.images import square_boxes


def described_annotations(path: str, pattern: str) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Annotations other than crowds, with category and the pattern filled with attributes and ``category``."""
    truth = load_ground_truth(path)
    for a in truth.data["annotations"]:
        if a.get("iscrowd"):
            continue
        category = truth.categories[a["category_id"]]
        facts = {**a.get("attributes", {}), "category": category}
        try:
            yield a, category, pattern.format(**facts)
        except (KeyError, IndexError) as error:
            raise UserError(
                f"Pattern {pattern!r} needs {error}; annotations of {path} have {', '.join(facts)}."
            ) from error


def read_presence(
    records: Sequence[CaptionRecord], presence: Mapping[str, str], file: str | None, data_root: str
) -> dict[str, list[str]]:
    """Set ``present`` of the records; returns the sorted names of each vocabulary.

    Args:
        records: modified in place.
        presence: maps vocabulary names to patterns.
        file: COCO annotations.
        data_root: root of ``file``.
    """
    if not file:
        raise UserError("presence needs presence_file, a COCO annotation file.")
    vocabularies = {}
    for name, pattern in presence.items():
        names: dict[Any, set[str]] = {}
        for a, _, text in described_annotations(osp.join(data_root, file), pattern):
            names.setdefault(a["image_id"], set()).add(text)
        vocabularies[name] = sorted(set().union(*names.values()))
        for r in records:
            r.present[name] = sorted(names.get(r.id, ()))
    return vocabularies


class RegionTexts:
    """Boxes of COCO annotations with one text each, for region-caption contrast.

    Args:
        file: COCO annotations of the captioned images, matched by image id.
        pattern: name of an annotation, over its attributes and ``category``.
        template: text for a name, see ``core.prompts.fill``.
        classes: use only these categories (the base classes, if novel ones are tested); None: all.
        limit: maximum number of boxes per image and step, drawn at random.
        min_side: smallest side in pixels of the square input; smaller boxes are dropped.
        data_root: root of ``file``.
    """

    def __init__(
        self,
        file: str,
        pattern: str = "{category}",
        template: str = "{article} {}",
        classes: Sequence[str] | None = None,
        limit: int = 8,
        min_side: float = 4.0,
        data_root: str = "",
    ) -> None:
        if limit < 1:
            raise UserError(f"regions.limit must be at least 1; given {limit}.")
        self.file, self.pattern, self.limit, self.min_side = osp.join(data_root, file), pattern, limit, min_side
        self.template = template
        self.classes = None if classes is None else frozenset(classes)

    def attach(self, records: Sequence[CaptionRecord]) -> None:
        """Set ``regions`` and ``size`` of the records."""
        truth = load_ground_truth(self.file)
        known = set(truth.categories.values())
        if self.classes is not None and self.classes - known:
            raise unknown_names(
                "regions.classes", sorted(self.classes - known), known, f"Names must be categories of {self.file}."
            )
        regions: dict[Any, list[Any]] = {}
        for a, category, text in described_annotations(self.file, self.pattern):
            if self.classes is None or category in self.classes:
                x, y, w, h = a["bbox"]
                regions.setdefault(a["image_id"], []).append(((x, y, x + w, y + h), fill(self.template, text)))
        for r in records:
            r.regions, r.size = regions.get(r.id, []), truth.image_sizes.get(r.id, r.size)
        if not any(r.regions for r in records):
            raise UserError(f"No box of {self.file} belongs to a captioned image (matched by image id).")

    def draw(
        self,
        regions: Sequence[Any],
        size: tuple[int, int] | None,
        side: int,
        fit: str,
        flipped: bool,
        rng: np.random.Generator,
    ) -> tuple[list[list[float]], list[str]]:
        """Draw at most ``limit`` regions: boxes ``[R, 4]`` xyxy in pixels of the square, and texts."""
        if not regions or size is None:
            return [], []
        boxes = square_boxes(np.array([b for b, _ in regions]), size, side, fit)
        if flipped:
            boxes[:, [0, 2]] = side - boxes[:, [2, 0]]
        texts = [mirrored_sentence(t) if flipped else t for _, t in regions]
        known = np.array([t is not None for t in texts])
        usable = np.flatnonzero(((boxes[:, 2:] - boxes[:, :2]) >= self.min_side).all(axis=1) & known)
        chosen = rng.permutation(usable)[: self.limit]
        return boxes[chosen].tolist(), [str(texts[i]) for i in chosen]
