"""Reading and checking of predicted detections, with one rule for each kind of invalid prediction.

* unknown image: error (usually another split);
* image that the file lists but that is excluded (``--images annotated``): dropped, counted;
* unknown category: ignored by COCO and LVIS evaluators; counted, reported;
* non-finite numbers, a box that is not four numbers, negative width or height, swapped corners: error;
* ids written as decimals (1.0): read as integers; strings where the annotations have numbers: error;
* boxes that leave their image: kept, as evaluators do; counted, reported.

Boxes are xywh pixels in COCO files, and xyxy pixels in the columnar file and in the JSON lines of a run.
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
#: Result lists above this size in bytes are streamed in chunks of ``PIECE`` characters.
STREAMED_FROM = 64 << 20
PIECE = 16 << 20
_BETWEEN = re.compile(r"\}\s*,\s*\{")


def read_predictions(path: str | Path, truth: GroundTruth) -> Sequence[Mapping[str, Any]]:
    """Read predictions as a sequence of COCO results, from a result list, a columnar file, or JSON lines of a run.

    Columnar files and JSON lines have class names, which are matched to the annotations.
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
            f"{path} must hold a JSON list of results {{image_id, category_id, bbox, score}}; it is a "
            f"{type(data).__name__}. tools/test.py --out writes such lists."
        )
    return data


def _stream_results(path: Path) -> DetectionColumns | None:
    """Read a large result list in chunks; None if it is not a plain list of boxes.

    As dicts, six million detections would take several GB. Chunks are split between two results, at ``}, {``. If a
    chunk is not a list of valid boxes, the caller falls back to the reader that checks entry by entry.
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
                columns = _plain_columns(json.loads(f"[{piece}]"))
            except json.JSONDecodeError:
                return None
            if columns is None:
                return None
            parts.append(columns)
            text = text[after:] + more
    return DetectionColumns.cat(parts)


def _plain_columns(results: Sequence[Mapping[str, Any]]) -> DetectionColumns | None:
    """Convert results to columns if all fields have the right types and there are no masks; else None."""
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
    """Apply the rules of the module docstring.

    Returns:
        Results in order, as columns for boxes and as plain dicts for masks, and counts: ``predictions``,
        ``unknown_category`` (ignored by evaluators), ``outside_image`` (kept), ``left_out_images`` (predictions for
        excluded images), and the fixes in the annotations.

    Raises:
        UserError: at the first invalid result, with its position and content.
    """
    counts = {"predictions": len(results), "unknown_category": 0, "outside_image": 0, **truth.report.counts}
    images = {i["id"] for i in truth.data["images"]}
    allowed = images | truth.left_out
    checked: DetectionColumns | list[dict[str, Any]] | None
    checked = None if iou_type == "segm" else _valid_columns(results, allowed)
    if checked is None:
        rows = [_read_result(n, r, allowed, iou_type) for n, r in enumerate(results)]
        if iou_type == "segm":
            rows = [_with_mask(n, r, truth) for n, r in enumerate(rows) if r["image_id"] in images]
        checked = DetectionColumns.from_results(rows) if iou_type == "bbox" else rows
    if truth.left_out:
        # For masks, excluded images were dropped before decoding.
        checked = _of_images(checked, images)
        counts["left_out_images"] = len(results) - len(checked)
    boxed = checked if isinstance(checked, DetectionColumns) else [r for r in checked if "bbox" in r]
    counts["outside_image"] = _outside(DetectionColumns.from_results(boxed), truth)
    counts["unknown_category"] = _unknown(checked, truth)
    return checked, counts


def _with_mask(n: int, result: dict[str, Any], truth: GroundTruth) -> dict[str, Any]:
    """Convert the segmentation of a result to compressed RLE."""
    width, height = truth.image_sizes.get(result["image_id"], (None, None))
    try:
        return {**result, "segmentation": run_lengths(result["segmentation"], height, width)}
    except UserError as error:
        shown = json.dumps({k: v for k, v in result.items() if k != "segmentation"})
        raise UserError(f"Prediction {n} {shown}: {error}") from error


def _of_images(
    results: DetectionColumns | list[dict[str, Any]], images: set[Any]
) -> DetectionColumns | list[dict[str, Any]]:
    if isinstance(results, DetectionColumns):
        wanted = np.array([i in images for i in results.image_ids], dtype=bool)
        return results.take(wanted[results.images])
    return [r for r in results if r["image_id"] in images]


def _unknown(results: DetectionColumns | list[dict[str, Any]], truth: GroundTruth) -> int:
    """Count predictions with unknown categories; a likely cause is reported, or an error if it is certain."""
    known = truth.categories
    counts: Mapping[Any, int]
    if isinstance(results, DetectionColumns) and results.categories.dtype != object:
        counts = dict(zip(*(v.tolist() for v in np.unique(results.categories, return_counts=True)), strict=True))
    else:
        counts = Counter(r["category_id"] for r in results)
    unknown = {c: count for c, count in counts.items() if c not in known}
    for category in unknown:
        if "It lists" in (hint := twin_hint(category, known)):
            raise UserError(
                f"{unknown[category]} predictions have category {category!r}, which is not in {truth.path}.{hint}"
            )
    numbers = [c for c in counts if isinstance(c, int)]
    if unknown and len(numbers) == len(counts):
        low, high = min(numbers), max(numbers)
        for start in (0, 1):
            if low >= start and high < start + len(known):
                note(
                    f"{sum(unknown.values())} predictions have categories that are not in the annotations, and all ids "
                    f"are in {start}..{start + len(known) - 1}, like the labels of a network; {truth.path} numbers its "
                    f"{len(known)} classes {_span(known)}. Predictions must use the category ids of the annotations."
                )
                break
    return sum(unknown.values())


def _span(ids: Sequence[Any] | Mapping[Any, str]) -> str:
    return f"{min(ids)}..{max(ids)}" if all(isinstance(i, int) for i in ids) else "with strings"


def _valid_columns(results: Sequence[Mapping[str, Any]], images: set[Any]) -> DetectionColumns | None:
    """Return columns if all results are valid; None if entries must be checked one by one."""
    columns = results if isinstance(results, DetectionColumns) else _plain_columns(results)
    if columns is None or len(columns.boxes) != len(columns.scores) or not set(columns.image_ids) <= images:
        return None
    return columns if are_boxes(columns.boxes) and (np.abs(columns.scores) <= LARGEST).all() else None


def _outside(columns: DetectionColumns, truth: GroundTruth) -> int:
    """Count boxes that leave their image by more than a pixel; reported if they look like corners."""
    none = (np.inf, np.inf)
    sizes = np.array([truth.image_sizes.get(i, none) for i in columns.image_ids], dtype=np.float64).reshape(-1, 2)
    leaving = int(outside(columns.boxes, sizes[columns.images]).sum())
    if look_like_corners(len(columns), leaving, leaving > 0 and fit_as_corners(columns.boxes, sizes[columns.images])):
        note(
            f"{leaving} of {len(columns)} predicted boxes leave their image: are they x1, y1, x2, y2? COCO results are "
            "x, y, width, height."
        )
    return leaving


def _read_result(n: int, result: Any, images: set[Any], iou_type: str) -> dict[str, Any]:
    """Check one result and drop extra fields; ids written as decimals become integers."""
    if not isinstance(result, Mapping):
        raise UserError(f"Prediction {n} {result!r:.80}: a result must be a JSON object.")
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
            return f"{key} must be an integer or a string."
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
    """Write predictions as columns, at full precision, with names and protocol stamp.

    Args:
        path: output path with the suffix ``.safetensors``.
        image_ids: N image ids.
        xyxy: ``[N, 4]`` boxes in pixels.
        scores: ``[N]``.
        name_index: ``[N]`` indices into ``names``.
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
            f"{where}: box {bad} is {xyxy[bad].tolist()}; expected finite x1, y1, x2, y2 with x1 <= x2 and y1 <= y2."
        )


def _read_columnar(path: Path, truth: GroundTruth) -> DetectionColumns:
    if not path.is_file():
        raise UserError(f"No prediction file at {path}. Check the path.")
    tensors, meta = safe_safetensors_load(path)
    if meta.get("format") != COLUMNAR:
        raise UserError(f"{path} is not a columnar prediction file (its format is {meta.get('format')!r}).")
    names = json.loads(meta["names"])
    boxes = tensors["xyxy"].double().numpy().copy()
    _refuse_bad_corners(boxes, str(path))
    boxes[:, 2:] -= boxes[:, :2]
    images = tensors["image_id"].tolist()
    if "image_ids" in meta:
        # String ids are stored in the metadata; the column has indices into them.
        listed = json.loads(meta["image_ids"])
        images = [listed[n] for n in images]
    return DetectionColumns.from_arrays(
        images, truth.ids_of(names)[tensors["name_index"].numpy()], boxes, tensors["score"].double().numpy()
    )


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Read one record per image of a ``.partial.jsonl`` file; a truncated last line is skipped."""
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
            raise UserError(f"{path}, line {n} lacks image_id, boxes, scores or names: not a record of a run.")
        fields = [row[k] for k in ("boxes", "scores", "names", "masks") if k in row]
        if not all(isinstance(v, list) and len(v) == len(row["scores"]) for v in fields):
            raise UserError(f"{path}, line {n}: boxes, scores and names must be lists of equal length.")
        if not all(map(is_box, row["boxes"])) or not all(map(is_number, row["scores"])):
            raise UserError(f"{path}, line {n}: boxes must be four finite numbers x1, y1, x2, y2, and scores numbers.")
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
