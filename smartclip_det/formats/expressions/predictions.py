"""Predictions for sentences: boxes and masks. Boxes are xyxy pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.rules import BOX_FORMATS
from smartclip_det.formats.expressions.record import Expression, GroundedBoxes
from smartclip_det.formats.json_lines import read_json_lines
from smartclip_det.utils.boxes import to_xyxy


def load_grounding_predictions(path: str | Path, box_format: str = BOX_FORMATS[0]) -> dict[int | str, GroundedBoxes]:
    """Read ``{"id", "boxes", "scores"}`` JSON lines; boxes are sorted by descending score; ties keep file order.

    Raises:
        UserError: naming the line, for broken JSON, a repeated id, NaN, or boxes and scores of different length.
    """
    check_choice("box_format", box_format, BOX_FORMATS)
    out: dict[int | str, GroundedBoxes] = {}
    for where, row in read_json_lines(path, "prediction file"):
        try:
            key = row["id"]
            boxes = [tuple(float(v) for v in b) for b in row["boxes"]]
            scores = [float(s) for s in row.get("scores", [0.0] * len(boxes))]
            hash(key)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{where}: not {{id, boxes, scores}} ({error!r}).") from error
        problem = _grounding_problem(key, boxes, scores, out, box_format)
        if problem:
            raise UserError(f"{where} (id {key!r}): {problem}")
        order = sorted(range(len(boxes)), key=lambda i: -scores[i])
        corners = [to_xyxy(boxes[i]) if box_format == "xywh" else boxes[i] for i in order]
        out[key] = GroundedBoxes(tuple(corners), tuple(scores[i] for i in order))  # type: ignore[arg-type]
    return out


def _grounding_problem(key: Any, boxes: list[Any], scores: list[float], seen: dict[Any, Any], box_format: str) -> str:
    if key in seen:
        return "this id is repeated."
    if len(boxes) != len(scores):
        return f"{len(boxes)} boxes but {len(scores)} scores."
    if any(len(b) != 4 for b in boxes):
        return "a box is not four numbers."
    if not all(math.isfinite(v) for b in boxes for v in b) or not all(map(math.isfinite, scores)):
        return "a number is not finite."
    if box_format == "xyxy" and any(b[2] < b[0] or b[3] < b[1] for b in boxes):
        return "x2 < x1 or y2 < y1: boxes must be [x1, y1, x2, y2]; for [x, y, width, height] use --box-format xywh."
    return ""


def load_mask_predictions(path: str | Path) -> dict[int | str, Any]:
    """Read JSON lines ``{"id", "segmentation"}``: COCO RLE or polygons, null for an empty mask.

    Raises:
        UserError: naming the line, for a repeated id or missing fields.
    """
    out: dict[int | str, Any] = {}
    for where, row in read_json_lines(path, "prediction file"):
        try:
            key, mask = row["id"], row["segmentation"]
            hash(key)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: not {{id, segmentation}} ({error!r}).") from error
        if key in out:
            raise UserError(f"{where}: id {key!r} is repeated.")
        out[key] = mask
    return out


def check_known(truth: Sequence[Expression], predictions: Mapping[int | str, Any]) -> None:
    """Raise an error for predictions of sentences that are not in the annotations."""
    known = {e.id for e in truth}
    unknown = [k for k in predictions if k not in known]
    if unknown:
        raise UserError(
            f"{len(unknown)} predictions are for sentences that are not in the annotations, e.g. id {unknown[0]!r}; "
            "they may be of another split or data set."
        )
