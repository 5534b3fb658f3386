"""Candidate boxes of zero-shot grounding, and what picking one at random gives. Boxes are xyxy pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smartclip_det.core.errors import UserError
from smartclip_det.formats.detections import load_ground_truth, read_predictions
from smartclip_det.formats.expressions.files import Expression, GroundedBoxes, load_grounding_predictions
from smartclip_det.metrics.referring import box_overlap, check_known

GROUND_TRUTH = "ground-truth"


def single_targets(expressions: Sequence[Expression]) -> tuple[list[Expression], int]:
    """The sentences with exactly one target, and how many others there were.

    Raises:
        UserError: when none is left.
    """
    kept = [e for e in expressions if len(e.boxes) == 1]
    if not kept:
        raise UserError("No sentence has exactly one target.")
    return kept, len(expressions) - len(kept)


@dataclass
class Candidates:
    """Candidate boxes of a sentence; sentences of an image may share one object.

    Attributes:
        boxes: R xyxy boxes, best-scored first where there are scores.
        scores: R scores of the detector, or None.
        masks: COCO segmentation of each box, or None.
    """

    boxes: list[list[float]]
    scores: list[float] | None = None
    masks: list[Any] | None = None


def candidates_of(
    kind: str, expressions: Sequence[Expression], instances: str | None = None, limit: int = 100,
    known: Sequence[Expression] | None = None,
) -> dict[int | str, Candidates]:  # fmt: skip
    """Candidate boxes of each sentence.

    Args:
        kind: ``ground-truth``, a COCO result list (``.json``; best-scored first, whatever the class), or JSON lines of
            grounding predictions (``.jsonl``), which have boxes and scores for each sentence.
        expressions: the sentences.
        instances: COCO annotations; with ``ground-truth`` all their boxes, without them all targets that the
            sentences of an image name.
        limit: boxes at most, for files.
        known: all sentences of the file, of which ``expressions`` may be a part.

    Raises:
        UserError: for a result list without ``instances`` (whose images it is checked against), or a missing file.
    """
    if kind == GROUND_TRUTH and not instances:
        named: dict[int | str, Candidates] = {e.image_id: Candidates([]) for e in expressions}
        for e in expressions:
            boxes = named[e.image_id].boxes
            boxes += [list(b) for b in e.boxes if list(b) not in boxes]
        return {e.id: named[e.image_id] for e in expressions}
    if kind != GROUND_TRUTH and not Path(kind).is_file():
        raise UserError(f"No proposals at {kind}. Give ground-truth, rpn, detector, a COCO result list or JSON lines.")
    if kind.endswith(".jsonl"):
        found = load_grounding_predictions(kind)
        check_known(known or expressions, found)
        empty = GroundedBoxes((), ())
        mine = {e.id: found.get(e.id, empty) for e in expressions}
        return {k: Candidates([list(b) for b in f.boxes[:limit]], list(f.scores[:limit])) for k, f in mine.items()}
    if not instances:
        raise UserError("Saved proposals need --instances, the COCO annotations of their images.")
    return _of_instances(kind, expressions, instances, limit)


def _of_instances(
    kind: str, expressions: Sequence[Expression], instances: str, limit: int
) -> dict[int | str, Candidates]:
    truth = load_ground_truth(instances)
    if kind == GROUND_TRUTH:
        rows: Any = [a for a in truth.data["annotations"] if not a.get("iscrowd")]
    else:
        rows = sorted(read_predictions(kind, truth), key=lambda r: -r["score"])
    out = {e.image_id: Candidates([], None if kind == GROUND_TRUTH else [], []) for e in expressions}
    for row in rows:
        mine = out.get(row["image_id"])
        if mine is None or (kind != GROUND_TRUTH and len(mine.boxes) >= limit):
            continue
        x, y, w, h = row["bbox"]
        mine.boxes.append([x, y, x + w, y + h])
        if mine.scores is not None:
            mine.scores.append(row["score"])
        if mine.masks is not None and row.get("segmentation"):
            mine.masks.append(row["segmentation"])
    for mine in out.values():
        mine.masks = mine.masks if mine.masks and len(mine.masks) == len(mine.boxes) else None
    return {e.id: out[e.image_id] for e in expressions}


def chance_accuracy(expressions: Sequence[Expression], boxes: Mapping[int | str, Candidates]) -> float:
    """Accuracy at IoU 0.5 that is expected of a candidate drawn at random for each sentence."""
    values = []
    for e in expressions:
        mine = boxes[e.id].boxes if e.id in boxes else []
        hits = sum(box_overlap(b, e.boxes[0]) >= 0.5 for b in mine)
        values.append(hits / len(mine) if mine else 0.0)
    return float(np.mean(values))


def best_possible(expressions: Sequence[Expression], boxes: Mapping[int | str, Candidates]) -> float:
    """Accuracy at IoU 0.5 of a scorer that always picks the best candidate: what the proposals allow."""
    found = {e.id: boxes[e.id].boxes if e.id in boxes else [] for e in expressions}
    return float(np.mean([any(box_overlap(b, e.boxes[0]) >= 0.5 for b in found[e.id]) for e in expressions]))
