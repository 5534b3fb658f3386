"""Detection ground truth and predictions on disk, and the rule for each kind of bad input.

* prediction for an image that the annotations do not have: refused (another split, most often);
* prediction of a category that they do not have: ignored by every evaluator of the field; counted, reported;
* NaN or infinite numbers, a box that is not four numbers, negative width or height: refused;
* annotation id 0 or a repeated one: every evaluator of the field reads a match with it as no match; so do the
  backends, which equal them; counted, reported;
* boxes that leave their image: kept, as the field's evaluators keep them; counted, reported.

Boxes are xywh pixels in COCO files and xyxy pixels in the columnar file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smartclip_det.core.errors import UserError, unknown_names
from smartclip_det.utils.safe_load import safe_safetensors_load

_RESULT_FIELDS = ("image_id", "category_id", "bbox", "score", "segmentation")
COLUMNAR = "smartclip_det.detections/1"


@dataclass
class GroundTruth:
    """A COCO or LVIS annotation file in memory.

    Attributes:
        data: the json content.
        path: where it came from.
        image_sizes: image id to (width, height), where the file tells them.
    """

    data: dict[str, Any]
    path: str
    image_sizes: dict[Any, tuple[float, float]] = field(default_factory=dict)

    @property
    def categories(self) -> dict[int, str]:
        """Category id to name, in the file's order."""
        return {c["id"]: c["name"] for c in self.data["categories"]}

    def category_ids(self, names: Sequence[str]) -> list[int]:
        """Ids of names, in the order of the names; an unmatched name is an error with nearest names."""
        by_name = {name: cid for cid, name in self.categories.items()}
        missing = [n for n in names if n not in by_name]
        if missing:
            raise unknown_names("class names", missing, by_name, f"They are looked up in {self.path}.")
        return [by_name[n] for n in names]


def read_json(path: str | Path, what: str) -> Any:
    """Parse a json file; a missing or broken one is a :class:`UserError` that names it."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No {what} at {path}. Check the path.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); it may be cut short.") from error


def load_ground_truth(source: str | Path | Mapping[str, Any]) -> GroundTruth:
    """Read COCO or LVIS annotations.

    Raises:
        UserError: for a missing or broken file, or one without images, annotations and categories.
    """
    data = dict(source) if isinstance(source, Mapping) else read_json(source, "annotation file")
    where = "annotations" if isinstance(source, Mapping) else str(source)
    if not isinstance(data, dict):
        raise UserError(f"{where} holds a {type(data).__name__}; COCO or LVIS annotations are a JSON object.")
    missing = [k for k in ("images", "annotations", "categories") if k not in data]
    if missing:
        raise UserError(f"{where} is no COCO or LVIS annotation file: it lacks {', '.join(missing)}.")
    _check_schema(data, where)
    names = [c["name"] for c in data["categories"]]
    if len(set(names)) != len(names):
        raise UserError(f"{where} repeats category names: {sorted({n for n in names if names.count(n) > 1})[:5]}.")
    sizes = {i["id"]: (i["width"], i["height"]) for i in data["images"] if "width" in i and "height" in i}
    return GroundTruth(data, where, sizes)


def _check_schema(data: dict[str, Any], where: str) -> None:
    """Refuse entries without what evaluators rely on; fill in ids, ``iscrowd`` 0 and ``area`` where left out."""
    needed = {"images": ("id",), "categories": ("id", "name"), "annotations": ("image_id", "category_id", "bbox")}
    for part, keys in needed.items():
        if not isinstance(data[part], list):
            raise UserError(f"{where}: {part} must be a list; it is a {type(data[part]).__name__}.")
        for n, entry in enumerate(data[part]):
            missing = [k for k in keys if not isinstance(entry, dict) or k not in entry]
            if missing:
                raise UserError(f"{where}: entry {n} of {part} lacks {', '.join(missing)}.")
            for key in keys:
                if key in ("id", "image_id", "category_id") and not isinstance(entry[key], int | str):
                    raise UserError(f"{where}: entry {n} of {part} has {key}={entry[key]!r}; ids are numbers or texts.")
    ids = {i["id"] for i in data["images"]}
    filled = []
    for n, a in enumerate(data["annotations"]):
        if not is_box(a["bbox"]):
            raise UserError(
                f"{where}: entry {n} of annotations has bbox={a['bbox']!r}; [x, y, width, height] is needed."
            )
        if a["image_id"] not in ids:
            raise UserError(f"{where}: entry {n} of annotations is for image {a['image_id']!r}, which the file lacks.")
        filled.append({"id": n + 1, "iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3], **a})
    data["annotations"] = filled


def is_box(value: Any) -> bool:
    """Whether a value is four finite numbers."""
    return isinstance(value, list | tuple) and len(value) == 4 and all(is_number(v) for v in value)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that fits a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= 1e300


#: Which images of a file are scored.
IMAGES = ("all", "annotated")


def annotated_only(truth: GroundTruth, names: Sequence[str] | None = None) -> GroundTruth:
    """The annotations without images that hold no box of the given classes (None: of any class).

    OV-COCO validates on the 4,836 images of val2017 that hold one of the 65 classes (ovd reference 2.1).
    """
    wanted = set(truth.categories if names is None else truth.category_ids(names))
    kept = {a["image_id"] for a in truth.data["annotations"] if a["category_id"] in wanted}
    images = [i for i in truth.data["images"] if i["id"] in kept]
    boxes = [a for a in truth.data["annotations"] if a["image_id"] in kept]
    data = {**truth.data, "images": images, "annotations": boxes}
    return GroundTruth(data, truth.path, {k: v for k, v in truth.image_sizes.items() if k in kept})


def read_predictions(path: str | Path, truth: GroundTruth) -> list[dict[str, Any]]:
    """Predictions as a COCO result list, from such a list or from a columnar file.

    Columnar predictions carry class names, which are matched to the annotations by name.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _read_columnar(path, truth)
    data = read_json(path, "prediction file")
    if not isinstance(data, list):
        raise UserError(
            f"{path} must hold a JSON list of results {{image_id, category_id, bbox, score}}; it holds a "
            f"{type(data).__name__}. tools/test.py --out writes such lists."
        )
    return data


def check_predictions(
    results: Sequence[Mapping[str, Any]], truth: GroundTruth, iou_type: str = "bbox"
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Apply the rules of the module text.

    Returns:
        The results as plain dicts, in order, and counts: ``predictions``, ``unknown_category`` (ignored by the
        evaluators), ``outside_image`` (kept).

    Raises:
        UserError: at the first refused result, telling its position and content.
    """
    images = {i["id"] for i in truth.data["images"]}
    categories = set(truth.categories)
    counts = {"predictions": len(results), "unknown_category": 0, "outside_image": 0}
    ids = [a["id"] for a in truth.data["annotations"]]
    odd = sum(i == 0 for i in ids) + len(ids) - len(set(ids))
    if odd:
        counts["unusable_annotation_ids"] = odd
    checked = []
    for i, result in enumerate(results):
        problem = _problem(result, images, iou_type)
        if problem:
            raise UserError(f"Prediction {i} {json.dumps(_shown(result))}: {problem}")
        counts["unknown_category"] += result["category_id"] not in categories
        size = truth.image_sizes.get(result["image_id"])
        if size is not None and "bbox" in result:
            x, y, w, h = result["bbox"]
            counts["outside_image"] += x < -1 or y < -1 or x + w > size[0] + 1 or y + h > size[1] + 1
        checked.append({k: v for k, v in result.items() if k in _RESULT_FIELDS})
    return checked, counts


def _shown(result: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in dict(result).items() if k != "segmentation"} if isinstance(result, Mapping) else {"?": 1}


def _problem(result: Mapping[str, Any], images: set[Any], iou_type: str) -> str:
    if not isinstance(result, Mapping):
        return "a result is a JSON object."
    geometry = "bbox" if iou_type == "bbox" else "segmentation"
    missing = [k for k in ("image_id", "category_id", "score", geometry) if k not in result]
    if missing:
        return f"it lacks {', '.join(missing)}."
    for key in ("image_id", "category_id"):
        if isinstance(result[key], bool) or not isinstance(result[key], int | str):
            return f"{key} must be a number or a text."
    if result["image_id"] not in images:
        return f"the annotations have no image {result['image_id']!r}; they may be of another split."
    if not is_number(result["score"]):
        return "the score is not a finite number."
    if iou_type == "segm" and not (isinstance(result["segmentation"], list | dict) and result["segmentation"]):
        return "segmentation must be polygons or an RLE."
    if "bbox" in result:
        box = result["bbox"]
        if not isinstance(box, list | tuple) or len(box) != 4:
            return "bbox must be [x, y, width, height]."
        if not is_box(box):
            return "bbox holds a number that is not finite."
        if box[2] < 0 or box[3] < 0:
            return "width or height is negative: bbox must be [x, y, width, height]."
    return ""


def write_columnar(
    path: str | Path, results: Sequence[Mapping[str, Any]], names: Sequence[str], stamp: Mapping[str, Any]
) -> None:
    """Write predictions as columns, exact, with names and protocol stamp inside.

    Args:
        path: ends in ``.safetensors``.
        results: ``{image_id: int, xyxy: 4 floats, score, name_index}`` each.
        names: class names that ``name_index`` points into.
        stamp: protocol stamp.
    """
    from safetensors.torch import save_file

    boxes = torch.tensor([r["xyxy"] for r in results], dtype=torch.float64).reshape(-1, 4)
    tensors = {
        "image_id": torch.tensor([r["image_id"] for r in results], dtype=torch.int64),
        "xyxy": boxes,
        "score": torch.tensor([r["score"] for r in results], dtype=torch.float64),
        "name_index": torch.tensor([r["name_index"] for r in results], dtype=torch.int32),
    }
    # fp32 where it holds the values exactly, which is what detectors give.
    for key in ("xyxy", "score"):
        if bool((tensors[key].float().double() == tensors[key]).all()):
            tensors[key] = tensors[key].float()
    meta = {"format": COLUMNAR, "names": json.dumps(list(names)), "stamp": json.dumps(dict(stamp))}
    save_file(tensors, str(path), metadata=meta)


def _read_columnar(path: Path, truth: GroundTruth) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"No prediction file at {path}. Check the path.")
    tensors, meta = safe_safetensors_load(path)
    if meta.get("format") != COLUMNAR:
        raise UserError(f"{path} is no columnar prediction file (its format is {meta.get('format')!r}).")
    names = json.loads(meta["names"])
    by_name = {name: cid for cid, name in truth.categories.items()}
    # An id that the annotations do not have, so that the one rule for unknown categories counts it.
    unknown = max([0, *by_name.values()]) + 1
    ids = [by_name.get(n, unknown) for n in names]
    return [
        {"image_id": i, "category_id": ids[n], "bbox": xyxy_to_xywh(b), "score": s}
        for i, n, b, s in zip(
            tensors["image_id"].tolist(),
            tensors["name_index"].tolist(),
            tensors["xyxy"].tolist(),
            tensors["score"].tolist(),
            strict=True,
        )
    ]


def xyxy_to_xywh(box: Sequence[float] | Tensor) -> list[float]:
    """``[x1, y1, x2, y2]`` to ``[x, y, width, height]``, in double precision."""
    x1, y1, x2, y2 = (float(v) for v in box)
    return [x1, y1, x2 - x1, y2 - y1]
