"""Candidate boxes of zero-shot grounding. Boxes are xyxy pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.formats.expressions.predictions import check_known, load_grounding_predictions
from smartclip_det.formats.expressions.record import Expression, GroundedBoxes
from smartclip_det.formats.predictions import check_predictions, read_predictions
from smartclip_det.utils.boxes import to_xyxy

GROUND_TRUTH = "ground-truth"


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
    kind: str,
    expressions: Sequence[Expression],
    instances: str | None = None,
    limit: int = 100,
    known: Sequence[Expression] | None = None,
) -> dict[int | str, Candidates]:
    """Candidate boxes of each sentence.

    Args:
        kind: ``ground-truth``, a COCO result list (``.json``; best-scored first, whatever the class), or JSON lines of
            grounding predictions (``.jsonl``), which have boxes and scores for each sentence.
        expressions: the sentences.
        instances: COCO annotations; with ``ground-truth`` all their boxes, without them all targets that the
            sentences of an image name, those that are left out included.
        limit: boxes at most, for files.
        known: all sentences of the file, of which ``expressions`` may be a part.

    Raises:
        UserError: for a result list without ``instances`` (whose images it is checked against), or a missing file.
    """
    if kind == GROUND_TRUTH and not instances:
        everything = [*(known or ()), *expressions]
        named: dict[int | str, Candidates] = {e.image_id: Candidates([]) for e in everything}
        for e in everything:
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
        found = read_predictions(kind, truth)
        check_predictions(found, truth)
        rows = sorted(found, key=lambda r: -r["score"])
    out = {e.image_id: Candidates([], None if kind == GROUND_TRUTH else [], []) for e in expressions}
    for row in rows:
        mine = out.get(row["image_id"])
        if mine is None or (kind != GROUND_TRUTH and len(mine.boxes) >= limit):
            continue
        mine.boxes.append(list(to_xyxy(row["bbox"])))
        if mine.scores is not None:
            mine.scores.append(row["score"])
        if mine.masks is not None and row.get("segmentation"):
            mine.masks.append(row["segmentation"])
    for mine in out.values():
        mine.masks = mine.masks if mine.masks and len(mine.masks) == len(mine.boxes) else None
    return {e.id: out[e.image_id] for e in expressions}
