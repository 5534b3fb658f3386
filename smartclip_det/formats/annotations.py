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
#: Largest id that all evaluator backends support.
_LARGEST_ID = 2**31 - 1


@dataclass
class GroundTruth:
    """A COCO or LVIS annotation file in memory, checked.

    Attributes:
        data: the JSON content, with the fixes listed in ``report``.
        path: path of the file.
        image_sizes: image id -> (width, height), if known.
        report: what the check fixed.
        left_out: ids of listed images that are excluded from scoring.
        annotated: False for a file with images and categories only (for prediction without scoring).
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
        """Return category ids of names, in the same order; unknown names are an error with the nearest names."""
        by_name = {name: cid for cid, name in self.categories.items()}
        missing = [n for n in names if n not in by_name]
        if missing:
            raise unknown_names("class names", missing, by_name, f"Class names are looked up in {self.path}.")
        return [by_name[n] for n in names]

    def ids_of(self, names: Iterable[str]) -> np.ndarray:
        """Return category ids ``[N]`` of names; names missing from the file share one unused id."""
        by_name = {name: cid for cid, name in self.categories.items()}
        spare = max((i for i in by_name.values() if isinstance(i, int)), default=0) + 1
        unused = spare if all(isinstance(i, int) for i in by_name.values()) else _unused_text(by_name.values())
        return id_array([by_name.get(n, unused) for n in names])


def _unused_text(ids: Iterable[Any]) -> str:
    return "?" * (1 + max(len(str(i)) for i in ids))


def load_ground_truth(
    source: str | Path | Mapping[str, Any], *, need_annotations: bool = True, where: str = "annotations"
) -> GroundTruth:
    """Read and check COCO or LVIS annotations; fixes are reported once.

    Args:
        source: path of the file, or its content.
        need_annotations: False to accept a file with images and categories only.
        where: name of the content in messages.

    Raises:
        UserError: for a missing or broken file, one without images, annotations and categories, and what
            :mod:`annotation_check` rejects.
    """
    data = dict(source) if isinstance(source, Mapping) else read_json(source, "annotation file")
    where = where if isinstance(source, Mapping) else str(source)
    if not isinstance(data, dict):
        raise UserError(f"{where} holds a {type(data).__name__}; COCO or LVIS annotations must be a JSON object.")
    annotated = "annotations" in data
    missing = [k for k in ("images", "annotations", "categories") if k not in data]
    if missing == ["annotations"]:
        if need_annotations:
            raise UserError(
                f"{where} lacks annotations: it only lists images to predict on (like image_info_test-dev2017.json), "
                "so it cannot be used for scoring or training. For predictions: tools/test.py CONFIG CHECKPOINT --out "
                "pred.json."
            )
        data["annotations"] = []
    elif missing:
        raise UserError(f"{where} is not a COCO or LVIS annotation file: it lacks {', '.join(missing)}.")
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
    """Keep only images with a box of the given classes (None: of any class).

    OV-COCO validates on the 4,836 images of val2017 with one of the 65 classes (Zareian et al., arXiv 2011.10678).
    """
    wanted = set(truth.categories if names is None else truth.category_ids(names))
    return with_images(truth, {a["image_id"] for a in truth.data["annotations"] if a["category_id"] in wanted})


def with_images(truth: GroundTruth, keep: set[Any]) -> GroundTruth:
    """Keep only the given images; predictions for the others are not an error."""
    images = [i for i in truth.data["images"] if i["id"] in keep]
    boxes = [a for a in truth.data["annotations"] if a["image_id"] in keep]
    data = {**truth.data, "images": images, "annotations": boxes}
    left_out = truth.left_out | {i["id"] for i in truth.data["images"] if i["id"] not in keep}
    sizes = {k: v for k, v in truth.image_sizes.items() if k in keep}
    return replace(truth, data=data, image_sizes=sizes, left_out=left_out)


def with_numbers(
    truth: GroundTruth, results: Sequence[Mapping[str, Any]]
) -> tuple[GroundTruth, Sequence[Mapping[str, Any]]]:
    """Renumber string and large ids in annotations and checked results, for evaluators that need small integers.

    The numbers follow the order of the ids (integers before strings), so that ties are broken as with the ids.
    """
    images = [i["id"] for i in truth.data["images"]]
    categories = list(truth.categories)
    if all(map(_is_small, images)) and all(map(_is_small, categories)) and _have_small_categories(results):
        return truth, results
    image_of, category_of = _numbers(images), _numbers(categories)
    spare = len(categories) + 1
    lists = ("neg_category_ids", "not_exhaustive_category_ids")
    data = {
        **truth.data,
        "images": [
            {**i, "id": image_of[i["id"]], **{k: [category_of.get(c, spare) for c in i[k]] for k in lists if k in i}}
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
        renumbered = id_array([category_of.get(c, spare) for c in results.categories.tolist()])
        return numbered, replace(results, image_ids=[image_of[i] for i in results.image_ids], categories=renumbered)
    rows = [
        {**r, "image_id": image_of[r["image_id"]], "category_id": category_of.get(r["category_id"], spare)}
        for r in results
    ]
    return numbered, rows


def _is_small(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST_ID


def _have_small_categories(results: Sequence[Mapping[str, Any]]) -> bool:
    if isinstance(results, DetectionColumns):
        ids = results.categories
        return ids.dtype.kind in "iu" and bool(((ids >= 0) & (ids <= _LARGEST_ID)).all())
    return all(_is_small(r["category_id"]) for r in results)


def _numbers(ids: Iterable[Any]) -> dict[Any, int]:
    return {i: n for n, i in enumerate(sorted(ids, key=id_order), 1)}


def id_order(value: Any) -> tuple[bool, Any]:
    """Sort key of ids: integers before strings."""
    return isinstance(value, str), value
