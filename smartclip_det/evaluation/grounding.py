"""Candidate boxes of zero-shot grounding, and what picking one at random gives. Boxes are xyxy pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from smartclip_det.core.errors import UserError
from smartclip_det.evaluation.detection_files import load_ground_truth, read_predictions
from smartclip_det.evaluation.referring import box_overlap
from smartclip_det.evaluation.referring_files import Expression

Boxes = dict[int | str, list[list[float]]]
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


def proposals_by_image(
    kind: str, expressions: Sequence[Expression], instances: str | None = None, limit: int = 100
) -> Boxes:
    """Candidate boxes of each image.

    Args:
        kind: ``ground-truth``, or a COCO result list (best-scored first, whatever the class).
        expressions: whose images are asked for.
        instances: COCO annotations; with ``ground-truth`` all their boxes, without them all targets that the
            expressions name.
        limit: boxes per image at most, for result lists.

    Raises:
        UserError: for a result list without ``instances`` (whose images it is checked against).
    """
    images = {e.image_id for e in expressions}
    out: Boxes = {i: [] for i in images}
    if kind == GROUND_TRUTH and not instances:
        for e in expressions:
            out[e.image_id] += [list(b) for b in e.boxes if list(b) not in out[e.image_id]]
        return out
    if not instances:
        raise UserError("Saved proposals need --instances, the COCO annotations of their images.")
    truth = load_ground_truth(instances)
    if kind == GROUND_TRUTH:
        rows = [(a["image_id"], a["bbox"], 0.0) for a in truth.data["annotations"] if not a.get("iscrowd")]
    else:
        if not Path(kind).is_file():
            raise UserError(f"No proposals at {kind}. Give ground-truth, rpn, or a COCO result list.")
        found = sorted(read_predictions(kind, truth), key=lambda r: -r["score"])
        rows = [(r["image_id"], r["bbox"], r["score"]) for r in found]
    for image_id, (x, y, w, h), _ in rows:
        if image_id in images and (kind == GROUND_TRUTH or len(out[image_id]) < limit):
            out[image_id].append([x, y, x + w, y + h])
    return out


def chance_accuracy(expressions: Sequence[Expression], boxes: Mapping[int | str, Sequence[Sequence[float]]]) -> float:
    """Accuracy at IoU 0.5 that is expected of a candidate drawn at random for each sentence."""
    values = []
    for e in expressions:
        mine = boxes.get(e.image_id, [])
        hits = sum(box_overlap(b, e.boxes[0]) >= 0.5 for b in mine)
        values.append(hits / len(mine) if mine else 0.0)
    return float(np.mean(values))
