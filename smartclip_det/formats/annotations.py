"""COCO and LVIS annotations in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from smartclip_det.core.errors import UserError, unknown_names
from smartclip_det.formats.annotation_check import AnnotationCheck, CheckReport
from smartclip_det.formats.columns import DetectionColumns, id_array
from smartclip_det.formats.json_files import read_json
from smartclip_det.utils.notes import note

#: Which images of a file are scored.
IMAGES = ("all", "annotated", "predicted")
#: What every backend of the evaluators can take as an id.
_LARGEST_ID = 2**31 - 1


@dataclass
class GroundTruth:
    """A COCO or LVIS annotation file in memory, checked.

    Attributes:
        data: the json content, mended as ``report`` says.
        path: where it came from.
        image_sizes: image id to (width, height), where the file tells them.
        report: what the check mended.
        left_out: ids of images that the file lists and that are not asked for.
        annotated: False for a file that lists images and classes alone (for predictions only).
    """

    data: dict[str, Any]
    path: str
    image_sizes: dict[Any, tuple[float, float]] = field(default_factory=dict)
    report: CheckReport = field(default_factory=CheckReport)
    left_out: frozenset[Any] = frozenset()
    annotated: bool = True

    @property
    def categories(self) -> dict[Any, str]:
        """Category id to name, in the file's order."""
        return {c["id"]: c["name"] for c in self.data["categories"]}

    def category_ids(self, names: Sequence[str]) -> list[Any]:
        """Ids of names, in the order of the names; an unmatched name is an error with nearest names."""
        by_name = {name: cid for cid, name in self.categories.items()}
        missing = [n for n in names if n not in by_name]
        if missing:
            raise unknown_names("class names", missing, by_name, f"They are looked up in {self.path}.")
        return [by_name[n] for n in names]

    def ids_of(self, names: Iterable[str]) -> np.ndarray:
        """Category ids of any names, ``[N]``; a name that the file lacks gets one id that it does not use."""
        by_name = {name: cid for cid, name in self.categories.items()}
        foreign = max((i for i in by_name.values() if isinstance(i, int)), default=0) + 1
        unused = foreign if all(isinstance(i, int) for i in by_name.values()) else _unused_text(by_name.values())
        return id_array([by_name.get(n, unused) for n in names])


def _unused_text(ids: Iterable[Any]) -> str:
    return "?" * (1 + max(len(str(i)) for i in ids))


def load_ground_truth(
    source: str | Path | Mapping[str, Any], *, need_annotations: bool = True, where: str = "annotations"
) -> GroundTruth:
    """Read and check COCO or LVIS annotations; what was mended is told once.

    Args:
        source: the file, or its content.
        need_annotations: False to take a file of images and categories, for predictions only.
        where: the name of content in messages.

    Raises:
        UserError: for a missing or broken file, one without images, annotations and categories, and what
            :mod:`annotation_check` refuses.
    """
    data = dict(source) if isinstance(source, Mapping) else read_json(source, "annotation file")
    where = where if isinstance(source, Mapping) else str(source)
    if not isinstance(data, dict):
        raise UserError(f"{where} holds a {type(data).__name__}; COCO or LVIS annotations are a JSON object.")
    annotated = "annotations" in data
    missing = [k for k in ("images", "annotations", "categories") if k not in data]
    if missing == ["annotations"]:
        if need_annotations:
            raise UserError(
                f"{where} lacks annotations: it lists images to predict on (as image_info_test-dev2017.json), and "
                "there is nothing to score or learn. For predictions: tools/test.py CONFIG CHECKPOINT --out pred.json."
            )
        data["annotations"] = []
    elif missing:
        raise UserError(f"{where} is no COCO or LVIS annotation file: it lacks {', '.join(missing)}.")
    for part in ("images", "annotations", "categories"):
        if not isinstance(data[part], list):
            raise UserError(f"{where}: {part} must be a list; it is a {type(data[part]).__name__}.")
    check = AnnotationCheck(where)
    categories = check.categories(data["categories"])
    data["images"] = check.images(data["images"])
    data["annotations"] = check.annotations(data["annotations"])
    data["categories"] = check.without_root(categories, data["annotations"])
    report = check.finish()
    for line in report.lines():
        note(f"{where}: {line}.")
    return GroundTruth(data, where, check.sizes, report, annotated=annotated)


def annotated_only(truth: GroundTruth, names: Sequence[str] | None = None) -> GroundTruth:
    """The annotations without images that hold no box of the given classes (None: of any class).

    OV-COCO validates on the 4,836 images of val2017 that hold one of the 65 classes (ovd reference 2.1).
    """
    wanted = set(truth.categories if names is None else truth.category_ids(names))
    return with_images(truth, {a["image_id"] for a in truth.data["annotations"] if a["category_id"] in wanted})


def with_images(truth: GroundTruth, kept: set[Any]) -> GroundTruth:
    """The annotations of some images; predictions for the others of the file are no error."""
    images = [i for i in truth.data["images"] if i["id"] in kept]
    boxes = [a for a in truth.data["annotations"] if a["image_id"] in kept]
    data = {**truth.data, "images": images, "annotations": boxes}
    left_out = truth.left_out | {i["id"] for i in truth.data["images"] if i["id"] not in kept}
    sizes = {k: v for k, v in truth.image_sizes.items() if k in kept}
    return replace(truth, data=data, image_sizes=sizes, left_out=left_out)


def with_numbers(
    truth: GroundTruth, results: Sequence[Mapping[str, Any]]
) -> tuple[GroundTruth, Sequence[Mapping[str, Any]]]:
    """Annotations and checked results for evaluators that know numbers alone: text and huge ids are numbered.

    Numbers follow the order of the ids (numbers before texts), so ties fall as with the ids themselves.
    """
    images = [i["id"] for i in truth.data["images"]]
    categories = list(truth.categories)
    if all(map(_is_small, images)) and all(map(_is_small, categories)) and _have_small_categories(results):
        return truth, results
    image_of, category_of = _numbers(images), _numbers(categories)
    foreign = len(categories) + 1
    lists = ("neg_category_ids", "not_exhaustive_category_ids")
    data = {
        **truth.data,
        "images": [
            {**i, "id": image_of[i["id"]], **{k: [category_of.get(c, foreign) for c in i[k]] for k in lists if k in i}}
            for i in truth.data["images"]
        ],
        "annotations": [
            {**a, "image_id": image_of[a["image_id"]], "category_id": category_of[a["category_id"]]}
            for a in truth.data["annotations"]
        ],
        "categories": [{**c, "id": category_of[c["id"]]} for c in truth.data["categories"]],
    }
    numbered = replace(truth, data=data, image_sizes={image_of[i]: s for i, s in truth.image_sizes.items()})
    if isinstance(results, DetectionColumns):
        found = id_array([category_of.get(c, foreign) for c in results.categories.tolist()])
        return numbered, replace(results, image_ids=[image_of[i] for i in results.image_ids], categories=found)
    rows = [
        {**r, "image_id": image_of[r["image_id"]], "category_id": category_of.get(r["category_id"], foreign)}
        for r in results
    ]
    return numbered, rows


def _is_small(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST_ID


def _have_small_categories(results: Sequence[Mapping[str, Any]]) -> bool:
    if isinstance(results, DetectionColumns):
        found = results.categories
        return found.dtype.kind in "iu" and bool(((found >= 0) & (found <= _LARGEST_ID)).all())
    return all(_is_small(r["category_id"]) for r in results)


def _numbers(ids: Iterable[Any]) -> dict[Any, int]:
    return {i: n for n, i in enumerate(sorted(ids, key=id_order), 1)}


def id_order(value: Any) -> tuple[bool, Any]:
    """Sorting key of ids: numbers before texts."""
    return isinstance(value, str), value
