"""Detections on disk and in memory, and the rule for each kind of bad prediction.

* prediction for an image that the annotations do not have: refused (another split, most often);
* prediction for an image that the file lists and that is not asked for (``--images annotated``): left out, counted;
* prediction of a category that they do not have: ignored by every evaluator of the field; counted, reported;
* NaN or infinite numbers, a box that is not four numbers, negative width or height, corners out of order: refused;
* ids written as decimals (1.0): the whole numbers; texts where the annotations have numbers: refused;
* boxes that leave their image: kept, as the field's evaluators keep them; counted, reported.

Boxes are xywh pixels in COCO files and xyxy pixels in the columnar file and in the lines of a run.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smartclip_det.core.errors import UserError
from smartclip_det.formats.annotation_check import twin_hint
from smartclip_det.formats.annotations import GroundTruth
from smartclip_det.formats.boxes import (
    LARGEST,
    are_boxes,
    box_problem,
    first_bad_corners,
    fit_as_corners,
    is_box,
    is_number,
    look_like_corners,
    outside,
)
from smartclip_det.formats.columns import DetectionColumns
from smartclip_det.formats.json_files import open_text, parse_json, read_json, read_text
from smartclip_det.formats.segmentations import run_lengths
from smartclip_det.utils.notes import note
from smartclip_det.utils.safe_load import safe_safetensors_load

_RESULT_FIELDS = ("image_id", "category_id", "bbox", "score", "segmentation")
COLUMNAR = "smartclip_det.detections/1"
#: Result lists above this size in bytes are read in pieces of that many characters.
STREAMED_FROM = 64 << 20
PIECE = 16 << 20
_BETWEEN = re.compile(r"\}\s*,\s*\{")


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
    with open_text(path) as handle:
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
        ``unknown_category`` (ignored by the evaluators), ``outside_image`` (kept), ``left_out_images`` (predictions for
        images that are not asked for), and what was mended in the annotations.

    Raises:
        UserError: at the first refused result, telling its position and content.
    """
    counts = {"predictions": len(results), "unknown_category": 0, "outside_image": 0, **truth.report.counts}
    images = {i["id"] for i in truth.data["images"]}
    allowed = images | truth.left_out
    checked: DetectionColumns | list[dict[str, Any]] | None
    checked = None if iou_type == "segm" else _clean_columns(results, allowed)
    if checked is None:
        rows = [_read_result(n, r, allowed, iou_type) for n, r in enumerate(results)]
        if iou_type == "segm":
            rows = [_with_mask(n, r, truth) for n, r in enumerate(rows) if r["image_id"] in images]
        checked = DetectionColumns.from_results(rows) if iou_type == "bbox" else rows
    if truth.left_out:
        # For masks they are left out before they are drawn.
        checked = _asked_for(checked, images)
        counts["left_out_images"] = len(results) - len(checked)
    boxed = checked if isinstance(checked, DetectionColumns) else [r for r in checked if "bbox" in r]
    counts["outside_image"] = _outside(DetectionColumns.from_results(boxed), truth)
    counts["unknown_category"] = _unknown(checked, truth)
    return checked, counts


def _with_mask(n: int, result: dict[str, Any], truth: GroundTruth) -> dict[str, Any]:
    """The result with its segmentation as compressed run lengths."""
    width, height = truth.image_sizes.get(result["image_id"], (None, None))
    try:
        return {**result, "segmentation": run_lengths(result["segmentation"], height, width)}
    except UserError as error:
        shown = json.dumps({k: v for k, v in result.items() if k != "segmentation"})
        raise UserError(f"Prediction {n} {shown}: {error}") from error


def _asked_for(
    results: DetectionColumns | list[dict[str, Any]], images: set[Any]
) -> DetectionColumns | list[dict[str, Any]]:
    if isinstance(results, DetectionColumns):
        wanted = np.array([i in images for i in results.image_ids], dtype=bool)
        return results.take(wanted[results.images])
    return [r for r in results if r["image_id"] in images]


def _unknown(results: DetectionColumns | list[dict[str, Any]], truth: GroundTruth) -> int:
    """How many predictions are of categories that the annotations lack; their likely cause is told or refused."""
    known = truth.categories
    different: Mapping[Any, int]
    if isinstance(results, DetectionColumns) and results.categories.dtype != object:
        different = dict(zip(*(v.tolist() for v in np.unique(results.categories, return_counts=True)), strict=True))
    else:
        different = Counter(r["category_id"] for r in results)
    foreign = {c: count for c, count in different.items() if c not in known}
    for category in foreign:
        if "It lists" in (hint := twin_hint(category, known)):
            raise UserError(
                f"{foreign[category]} predictions are of category {category!r}, which {truth.path} lacks.{hint}"
            )
    numbers = [c for c in different if isinstance(c, int)]
    if foreign and len(numbers) == len(different):
        low, high = min(numbers), max(numbers)
        for start in (0, 1):
            if low >= start and high < start + len(known):
                note(
                    f"{sum(foreign.values())} predictions are of categories that the annotations lack, and all ids lie "
                    f"in {start}..{start + len(known) - 1}, as the labels of a network do; {truth.path} numbers its "
                    f"{len(known)} classes {_span(known)}. Predictions must carry the category ids of the annotations."
                )
                break
    return sum(foreign.values())


def _span(ids: Sequence[Any] | Mapping[Any, str]) -> str:
    return f"{min(ids)}..{max(ids)}" if all(isinstance(i, int) for i in ids) else "by texts"


def _clean_columns(results: Sequence[Mapping[str, Any]], images: set[Any]) -> DetectionColumns | None:
    """Columns of results that are plainly right; None where an entry needs a closer look, one by one."""
    columns = results if isinstance(results, DetectionColumns) else _plain_columns(results)
    if columns is None or len(columns.boxes) != len(columns.scores) or not set(columns.image_ids) <= images:
        return None
    return columns if are_boxes(columns.boxes) and (np.abs(columns.scores) <= LARGEST).all() else None


def _outside(found: DetectionColumns, truth: GroundTruth) -> int:
    """How many boxes leave their image by more than a pixel; told where they look like corners."""
    none = (np.inf, np.inf)
    sizes = np.array([truth.image_sizes.get(i, none) for i in found.image_ids], dtype=np.float64).reshape(-1, 2)
    leaving = int(outside(found.boxes, sizes[found.images]).sum())
    if look_like_corners(len(found), leaving, leaving > 0 and fit_as_corners(found.boxes, sizes[found.images])):
        note(
            f"{leaving} of {len(found)} predicted boxes leave their image: are they x1, y1, x2, y2? COCO results are "
            "x, y, width, height."
        )
    return leaving


def _read_result(n: int, result: Any, images: set[Any], iou_type: str) -> dict[str, Any]:
    """One result without further fields; ids written as decimals are mended."""
    if not isinstance(result, Mapping):
        raise UserError(f"Prediction {n} {result!r:.80}: a result is a JSON object.")
    out = {k: v for k, v in result.items() if k in _RESULT_FIELDS}
    for key in ("image_id", "category_id"):
        if isinstance(out.get(key), float) and out[key].is_integer():
            out[key] = int(out[key])
    if problem := _problem(out, images, iou_type):
        shown = json.dumps({k: v for k, v in result.items() if k != "segmentation"}, default=str)
        raise UserError(f"Prediction {n} {shown}: {problem}")
    return out


def _problem(result: Mapping[str, Any], images: set[Any], iou_type: str) -> str:
    geometry = "bbox" if iou_type == "bbox" else "segmentation"
    missing = [k for k in ("image_id", "category_id", "score", geometry) if k not in result]
    if missing:
        return f"it lacks {', '.join(missing)}."
    for key in ("image_id", "category_id"):
        if isinstance(result[key], bool) or not isinstance(result[key], int | str):
            return f"{key} must be a number or a text."
    if result["image_id"] not in images:
        hint = twin_hint(result["image_id"], images)
        hint = hint if "It lists" in hint else "; they may be of another split."
        return f"the annotations have no image {result['image_id']!r}{'.' * hint.startswith(' ')}{hint}"
    if not is_number(result["score"]):
        return "the score is not a finite number."
    if "bbox" in result and (problem := box_problem(result["bbox"])):
        return f"bbox: {problem}."
    return ""


def write_columnar(
    path: str | Path,
    image_ids: Sequence[int],
    xyxy: np.ndarray,
    scores: np.ndarray,
    name_index: np.ndarray,
    names: Sequence[str],
    stamp: Mapping[str, Any],
) -> None:
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

    _refuse_bad_corners(np.asarray(xyxy).reshape(-1, 4), str(path))
    meta = {"format": COLUMNAR, "names": json.dumps(list(names)), "stamp": json.dumps(dict(stamp))}
    if all(isinstance(i, int | np.integer) and abs(i) < 2**63 for i in image_ids):
        images = torch.tensor(list(image_ids), dtype=torch.int64)
    else:
        place = {i: n for n, i in enumerate(dict.fromkeys(image_ids))}
        images = torch.tensor([place[i] for i in image_ids], dtype=torch.int64)
        meta["image_ids"] = json.dumps(list(place))
    tensors = {
        "image_id": images,
        "xyxy": torch.from_numpy(np.ascontiguousarray(xyxy)).reshape(-1, 4),
        "score": torch.from_numpy(np.ascontiguousarray(scores)),
        "name_index": torch.from_numpy(np.asarray(name_index, dtype=np.int32)),
    }
    save_file(tensors, str(path), metadata=meta)


def _refuse_bad_corners(xyxy: np.ndarray, where: str) -> None:
    if (bad := first_bad_corners(xyxy)) is not None:
        raise UserError(
            f"{where}: box {bad} is {xyxy[bad].tolist()}; finite x1, y1, x2, y2 with x1 <= x2 and y1 <= y2 are needed."
        )


def _read_columnar(path: Path, truth: GroundTruth) -> DetectionColumns:
    if not path.is_file():
        raise UserError(f"No prediction file at {path}. Check the path.")
    tensors, meta = safe_safetensors_load(path)
    if meta.get("format") != COLUMNAR:
        raise UserError(f"{path} is no columnar prediction file (its format is {meta.get('format')!r}).")
    names = json.loads(meta["names"])
    boxes = tensors["xyxy"].double().numpy().copy()
    _refuse_bad_corners(boxes, str(path))
    boxes[:, 2:] -= boxes[:, :2]
    images = tensors["image_id"].tolist()
    if "image_ids" in meta:
        # Ids that are texts stand beside the columns, which hold their places.
        listed = json.loads(meta["image_ids"])
        images = [listed[n] for n in images]
    return DetectionColumns.from_arrays(
        images, truth.ids_of(names)[tensors["name_index"].numpy()], boxes, tensors["score"].double().numpy()
    )


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """One record per image of a ``.partial.jsonl`` file; a last line that was cut short is left out."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No prediction file at {path}. Check the path.")
    rows = []
    lines = read_text(path).splitlines()
    for n, line in enumerate(lines, 1):
        try:
            row = parse_json(line, f"{path}, line {n}")
        except UserError as error:
            if n == len(lines) and isinstance(error.__cause__, json.JSONDecodeError):
                break
            raise
        if not isinstance(row, dict) or not {"image_id", "boxes", "scores", "names"} <= set(row):
            raise UserError(f"{path}, line {n} lacks image_id, boxes, scores or names: no detections of a run.")
        fields = [row[k] for k in ("boxes", "scores", "names", "masks") if k in row]
        if not all(isinstance(v, list) and len(v) == len(row["scores"]) for v in fields):
            raise UserError(f"{path}, line {n}: boxes, scores and names must be lists of one length.")
        if not all(map(is_box, row["boxes"])) or not all(map(is_number, row["scores"])):
            raise UserError(f"{path}, line {n}: boxes are four finite numbers x1, y1, x2, y2, scores are numbers.")
        rows.append(row)
    return rows


def _read_lines(path: Path, truth: GroundTruth) -> Sequence[Mapping[str, Any]]:
    rows = read_lines(path)
    boxes = np.array([b for r in rows for b in r["boxes"]], dtype=np.float64).reshape(-1, 4)
    _refuse_bad_corners(boxes, str(path))
    boxes[:, 2:] -= boxes[:, :2]
    columns = DetectionColumns.from_arrays(
        [r["image_id"] for r in rows for _ in r["scores"]],
        truth.ids_of([n for r in rows for n in r["names"]]),
        boxes,
        np.array([s for r in rows for s in r["scores"]], dtype=np.float64),
    )
    if not any("masks" in r for r in rows):
        return columns
    masks = [m for r in rows for m in r["masks"]]
    return [{**row, "segmentation": m} for row, m in zip(columns, masks, strict=True)]
