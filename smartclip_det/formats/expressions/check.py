"""Validation of referring expressions from any layout; errors name the line and the id."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.formats.expressions.record import Expression
from smartclip_det.utils.boxes import Box

logger = logging.getLogger(__name__)
_LAYOUTS = "JSON lines hold [x1, y1, x2, y2], MDETR and COCO files [x, y, width, height], all in pixels of the image"


def check_expression(record: Expression, where: str, needs_sentence: bool = True) -> None:
    """Raise an error for an invalid record.

    Args:
        record: the expression.
        where: file and line or entry, for messages.
        needs_sentence: whether an empty sentence is an error; scoring boxes does not need sentences.

    Raises:
        UserError: for an id that is neither an integer nor a string, a sentence that is empty or not a string, and
            boxes that are not finite or have no area.
    """
    problem = _id_problem(record.id) or _sentence_problem(record.sentence, needs_sentence)
    for number, box in enumerate(record.boxes):
        problem = problem or _box_problem(box, number)
    if problem:
        raise UserError(f"{where} (id {record.id!r}): {problem}")


def _id_problem(key: Any) -> str:
    if isinstance(key, bool) or not isinstance(key, int | str) or key == "":
        return f"an id must be an integer or a string; got {key!r}."
    return ""


def _sentence_problem(sentence: Any, needed: bool) -> str:
    if not isinstance(sentence, str):
        return f"the sentence must be a string; got {sentence!r}. Write one record per sentence."
    return "" if sentence.strip() or not needed else "the sentence is empty. Remove the record, or add a sentence."


def _box_problem(box: Sequence[float], number: int) -> str:
    shown = [round(float(v), 2) for v in box]
    if not all(math.isfinite(v) for v in box):
        return f"box {number} is not finite: {shown}. Write pixel coordinates, or remove the record."
    if box[2] <= box[0] or box[3] <= box[1]:
        return f"box {number} has no area: corners {shown} need x1 < x2 and y1 < y2. {_LAYOUTS}."
    return ""


def check_fit(records: Sequence[Expression], path: Path) -> None:
    """Raise an error for boxes in another format: normalised boxes, and boxes that leave their images.

    Boxes that leave an image slightly occur in data sets and are only reported; a file in another format has many of
    them, or some mostly outside.

    Raises:
        UserError: naming the first such sentence.
    """
    boxed = [r for r in records if r.boxes]
    if boxed and all(0 <= v <= 1 for r in boxed for b in r.boxes for v in b):
        raise UserError(
            f"{path} (id {boxed[0].id!r}): all {sum(len(r.boxes) for r in boxed)} boxes lie between 0 and 1, so they "
            f"seem to be normalised. {_LAYOUTS}: multiply by width and height."
        )
    leaving = [(r, b) for r in boxed if r.width > 0 and r.height > 0 for b in r.boxes if _leaves(b, r)]
    if not leaving:
        return
    total = sum(len(r.boxes) for r in boxed)
    worst = next(((r, b) for r, b in leaving if _share_inside(b, r) < 0.5), None)
    record, box = worst or leaving[0]
    message = (
        f"{len(leaving)} of {total} boxes leave their images, e.g. {[round(v, 2) for v in box]} of id {record.id!r} in "
        f"{record.width} x {record.height}"
    )
    if worst is not None or len(leaving) > 0.05 * total:
        raise UserError(f"{path}: {message}. {_LAYOUTS}; or the image sizes are wrong.")
    logger.warning("%s: %s; they are kept unchanged.", path, message)


def _leaves(box: Box, record: Expression) -> bool:
    """Whether a box leaves the image by more than 2 % of its side and 3 pixels."""
    slack_x, slack_y = max(3.0, 0.02 * record.width), max(3.0, 0.02 * record.height)
    return box[0] < -slack_x or box[1] < -slack_y or box[2] > record.width + slack_x or box[3] > record.height + slack_y


def _share_inside(box: Box, record: Expression) -> float:
    width = max(0.0, min(box[2], record.width) - max(box[0], 0.0))
    height = max(0.0, min(box[3], record.height) - max(box[1], 0.0))
    return width * height / ((box[2] - box[0]) * (box[3] - box[1]))
