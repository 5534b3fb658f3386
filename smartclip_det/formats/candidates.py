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
    """Candidate boxes of a sentence; sentences of an image may share one instance.

    Attributes:
        boxes: R xyxy boxes, sorted by descending score if there are scores.
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
    """Return candidate boxes of each sentence.

    Args:
        kind: ``ground-truth``, a COCO result list (``.json``; best-scored first, regardless of class), or JSON lines of
            grounding predictions (``.jsonl``) with boxes and scores per sentence.
        expressions: the sentences.
        instances: COCO annotations. With ``ground-truth``, all their boxes are candidates; without annotations, all
            targets of the image's sentences, including sentences that are skipped.
        limit: maximum number of boxes, for files.
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
        predictions = load_grounding_predictions(kind)
        check_known(known or expressions, predictions)
        empty = GroundedBoxes((), ())
        selected = {e.id: predictions.get(e.id, empty) for e in expressions}
        return {k: Candidates([list(b) for b in f.boxes[:limit]], list(f.scores[:limit])) for k, f in selected.items()}
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
        results = read_predictions(kind, truth)
        check_predictions(results, truth)
        rows = sorted(results, key=lambda r: -r["score"])
    out = {e.image_id: Candidates([], None if kind == GROUND_TRUTH else [], []) for e in expressions}
    for row in rows:
        candidates = out.get(row["image_id"])
        if candidates is None or (kind != GROUND_TRUTH and len(candidates.boxes) >= limit):
            continue
        candidates.boxes.append(list(to_xyxy(row["bbox"])))
        if candidates.scores is not None:
            candidates.scores.append(row["score"])
        if candidates.masks is not None and row.get("segmentation"):
            candidates.masks.append(row["segmentation"])
    for candidates in out.values():
        candidates.masks = (
            candidates.masks if candidates.masks and len(candidates.masks) == len(candidates.boxes) else None
        )
    return {e.id: out[e.image_id] for e in expressions}
