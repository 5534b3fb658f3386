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
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from smartclip_det.core.errors import UserError, unknown_names
from smartclip_det.formats.columns import DetectionColumns
from smartclip_det.formats.segmentations import run_lengths
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
        # Of bytes: with a byte order mark and in UTF-16 as well.
        return json.loads(path.read_bytes())
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


#: Result lists above this size in bytes are read in pieces of that many characters.
STREAMED_FROM = 64 << 20
PIECE = 16 << 20
_BETWEEN = re.compile(r"\}\s*,\s*\{")
#: Which images of a file are scored.
IMAGES = ("all", "annotated", "predicted")


def annotated_only(truth: GroundTruth, names: Sequence[str] | None = None) -> GroundTruth:
    """The annotations without images that hold no box of the given classes (None: of any class).

    OV-COCO validates on the 4,836 images of val2017 that hold one of the 65 classes (ovd reference 2.1).
    """
    wanted = set(truth.categories if names is None else truth.category_ids(names))
    return with_images(truth, {a["image_id"] for a in truth.data["annotations"] if a["category_id"] in wanted})


def with_images(truth: GroundTruth, kept: set[Any]) -> GroundTruth:
    """The annotations of some images."""
    images = [i for i in truth.data["images"] if i["id"] in kept]
    boxes = [a for a in truth.data["annotations"] if a["image_id"] in kept]
    data = {**truth.data, "images": images, "annotations": boxes}
    return GroundTruth(data, truth.path, {k: v for k, v in truth.image_sizes.items() if k in kept})


def read_predictions(path: str | Path, truth: GroundTruth) -> Sequence[Mapping[str, Any]]:
    """Predictions as a sequence of COCO results, from a result list, a columnar file, or JSON lines of a run.

    Columnar predictions and lines carry class names, which are matched to the annotations by name.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _read_columnar(path, truth)
    if path.suffix == ".jsonl":
        return _read_lines(path, truth)
    streamed = _stream_results(path) if path.is_file() and path.stat().st_size > STREAMED_FROM else None
    if streamed is not None:
        return streamed
    data = read_json(path, "prediction file")
    if not isinstance(data, list):
        raise UserError(
            f"{path} must hold a JSON list of results {{image_id, category_id, bbox, score}}; it holds a "
            f"{type(data).__name__}. tools/test.py --out writes such lists."
        )
    return data


def _stream_results(path: Path) -> DetectionColumns | None:
    """Columns of a large result list read piece by piece; None for what is no plain list of boxes.

    As dicts, six million detections would take several GB. A piece ends between two results, where a brace closes and,
    after a comma, another one opens; a piece that is no list of clean boxes sends the file to the careful reader.
    """
    parts: list[DetectionColumns] = []
    with path.open(encoding="utf-8") as handle:
        text = handle.read(PIECE)
        if not text.lstrip().startswith("["):
            return None
        text = text.lstrip()[1:]
        while text:
            more = handle.read(PIECE)
            cuts = list(_BETWEEN.finditer(text, max(0, len(text) - 10_000))) if more else []
            if more and not cuts:
                return None
            end, after = (cuts[-1].start() + 1, cuts[-1].end() - 1) if more else (len(text), len(text))
            piece = text[:end] if more else text.rstrip().removesuffix("]")
            try:
                found = _plain_columns(json.loads(f"[{piece}]"))
            except json.JSONDecodeError:
                return None
            if found is None:
                return None
            parts.append(found)
            text = text[after:] + more
    return DetectionColumns.cat(parts)


def _plain_columns(results: Sequence[Mapping[str, Any]]) -> DetectionColumns | None:
    """Columns of results whose fields have the right types and no mask; None otherwise."""
    try:
        numbers = {type(v) for r in results for v in (*r["bbox"], r["score"])}
        ids = {type(v) for r in results for v in (r["image_id"], r["category_id"])}
        if not numbers <= {int, float} or not ids <= {int, str} or any("segmentation" in r for r in results):
            return None
        columns = DetectionColumns.from_results(results)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return columns if len(columns.boxes) == len(columns.scores) else None


def check_predictions(
    results: Sequence[Mapping[str, Any]], truth: GroundTruth, iou_type: str = "bbox"
) -> tuple[Sequence[Mapping[str, Any]], dict[str, int]]:
    """Apply the rules of the module text.

    Returns:
        The results in order, as columns for boxes and as plain dicts for masks, and counts: ``predictions``,
        ``unknown_category`` (ignored by the evaluators), ``outside_image`` (kept).

    Raises:
        UserError: at the first refused result, telling its position and content.
    """
    counts = {"predictions": len(results), "unknown_category": 0, "outside_image": 0}
    ids = [a["id"] for a in truth.data["annotations"]]
    odd = sum(i == 0 for i in ids) + len(ids) - len(set(ids))
    if odd:
        counts["unusable_annotation_ids"] = odd
    checked = None if iou_type == "segm" else _clean_columns(results, truth)
    if checked is None:
        images = {i["id"] for i in truth.data["images"]}
        for i, result in enumerate(results):
            problem = _problem(result, images, iou_type)
            if problem:
                raise UserError(f"Prediction {i} {json.dumps(_shown(result))}: {problem}")
        checked = DetectionColumns.from_results(results) if iou_type == "bbox" else None
    if checked is None:
        plain = [_with_mask(i, r, truth) for i, r in enumerate(results)]
        known = set(truth.categories)
        counts["unknown_category"] = sum(r["category_id"] not in known for r in plain)
        boxed = [r for r in plain if "bbox" in r]
        counts["outside_image"] = _outside(DetectionColumns.from_results(boxed), truth)
        return plain, counts
    known = set(truth.categories)
    different, where = np.unique(checked.categories, return_inverse=True)
    foreign = np.array([c not in known for c in different.tolist()], dtype=bool)
    counts["unknown_category"] = int(foreign[where].sum())
    counts["outside_image"] = _outside(checked, truth)
    return checked, counts


def _with_mask(number: int, result: Mapping[str, Any], truth: GroundTruth) -> dict[str, Any]:
    """A result's fields, its segmentation as compressed run lengths."""
    width, height = truth.image_sizes.get(result["image_id"], (None, None))
    try:
        mask = run_lengths(result["segmentation"], height, width)
    except UserError as error:
        raise UserError(f"Prediction {number} {json.dumps(_shown(result))}: {error}") from error
    return {**{k: v for k, v in result.items() if k in _RESULT_FIELDS}, "segmentation": mask}


def _clean_columns(results: Sequence[Mapping[str, Any]], truth: GroundTruth) -> DetectionColumns | None:
    """Columns of results that are plainly right; None where an entry needs a closer look, one by one."""
    columns = results if isinstance(results, DetectionColumns) else _plain_columns(results)
    if columns is None:
        return None
    if len(columns.boxes) != len(columns.scores) or not set(columns.image_ids) <= {
        i["id"] for i in truth.data["images"]
    }:
        return None
    finite = np.isfinite(columns.boxes).all() and np.isfinite(columns.scores).all()
    bounded = np.abs(columns.boxes).max(initial=0) <= 1e300 and columns.boxes[:, 2:].min(initial=0) >= 0
    return columns if finite and bounded and np.abs(columns.scores).max(initial=0) <= 1e300 else None


def _outside(found: DetectionColumns, truth: GroundTruth) -> int:
    """How many boxes leave their image by more than a pixel."""
    none = (np.inf, np.inf)
    sizes = np.array([truth.image_sizes.get(i, none) for i in found.image_ids], dtype=np.float64).reshape(-1, 2)
    corner, far = found.boxes[:, :2], found.boxes[:, :2] + found.boxes[:, 2:]
    size = sizes[found.images]
    known = np.isfinite(size).all(axis=1)
    return int((known & ((corner < -1).any(axis=1) | (far > size + 1).any(axis=1))).sum())


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
    path: str | Path, image_ids: Sequence[int], xyxy: np.ndarray, scores: np.ndarray, name_index: np.ndarray,
    names: Sequence[str], stamp: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write predictions as columns, exact, with names and protocol stamp inside.

    Args:
        path: ends in ``.safetensors``.
        image_ids: N image ids.
        xyxy: ``[N, 4]`` boxes in pixels.
        scores: ``[N]``.
        name_index: ``[N]`` positions in ``names``.
        names: class names.
        stamp: protocol stamp.
    """
    import torch
    from safetensors.torch import save_file

    tensors = {
        "image_id": torch.tensor(list(image_ids), dtype=torch.int64),
        "xyxy": torch.from_numpy(np.ascontiguousarray(xyxy)).reshape(-1, 4),
        "score": torch.from_numpy(np.ascontiguousarray(scores)),
        "name_index": torch.from_numpy(np.asarray(name_index, dtype=np.int32)),
    }
    meta = {"format": COLUMNAR, "names": json.dumps(list(names)), "stamp": json.dumps(dict(stamp))}
    save_file(tensors, str(path), metadata=meta)


def _read_columnar(path: Path, truth: GroundTruth) -> DetectionColumns:
    if not path.is_file():
        raise UserError(f"No prediction file at {path}. Check the path.")
    tensors, meta = safe_safetensors_load(path)
    if meta.get("format") != COLUMNAR:
        raise UserError(f"{path} is no columnar prediction file (its format is {meta.get('format')!r}).")
    names = json.loads(meta["names"])
    by_name = {name: cid for cid, name in truth.categories.items()}
    # An id that the annotations do not have, so that the one rule for unknown categories counts it.
    unknown = max([0, *by_name.values()]) + 1
    ids = np.array([by_name.get(n, unknown) for n in names], dtype=np.int64)
    boxes = tensors["xyxy"].double().numpy().copy()
    boxes[:, 2:] -= boxes[:, :2]
    return DetectionColumns.from_arrays(
        tensors["image_id"].tolist(), ids[tensors["name_index"].numpy()], boxes, tensors["score"].double().numpy()
    )


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """One record per image of a ``.partial.jsonl`` file; a last line that was cut short is left out."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No prediction file at {path}. Check the path.")
    rows = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for n, line in enumerate(lines):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if n == len(lines) - 1:
                break
            raise UserError(f"{path}, line {n + 1} is not valid JSON ({error}).") from error
        if not isinstance(row, dict) or not {"image_id", "boxes", "scores", "names"} <= set(row):
            raise UserError(f"{path}, line {n + 1} lacks image_id, boxes, scores or names: no detections of a run.")
        rows.append(row)
    return rows


def _read_lines(path: Path, truth: GroundTruth) -> Sequence[Mapping[str, Any]]:
    rows = read_lines(path)
    by_name = {name: cid for cid, name in truth.categories.items()}
    unknown = max([0, *by_name.values()]) + 1
    boxes = np.array([b for r in rows for b in r["boxes"]], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    columns = DetectionColumns.from_arrays(
        [r["image_id"] for r in rows for _ in r["scores"]],
        np.array([by_name.get(n, unknown) for r in rows for n in r["names"]], dtype=np.int64), boxes,
        np.array([s for r in rows for s in r["scores"]], dtype=np.float64),
    )  # fmt: skip
    if not any("masks" in r for r in rows):
        return columns
    masks = [m for r in rows for m in r["masks"]]
    return [{**row, "segmentation": m} for row, m in zip(columns, masks, strict=True)]
