"""Which annotated boxes a detector learns from, by the rules of MMDetection's CocoDataset, and why it leaves others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.formats.annotations import GroundTruth, load_ground_truth
from smartclip_det.formats.pictures import check_pictures
from smartclip_det.utils.notes import note

CROWD = "crowd"
#: Why a box is left out, and what brings it back where it should not be.
REASONS = {
    "class": ("of a class that is not trained", "add it to the vocabulary (or to seen)"),
    "ignore": ("marked ignore", "write ignore 0"),
    CROWD: ("crowd (iscrowd 1)", "write iscrowd 0; CVAT marks every mask as a crowd"),
    "outside": ("outside of its image", "boxes are x, y, width, height in pixels of the picture as shown"),
    "area": ("of area 0", "drop the field: width x height is used then"),
    "thin": ("under a pixel wide or high", "boxes are in pixels, no shares of the image"),
}


def reason_to_leave_out(annotation: Mapping[str, Any], size: tuple[float, float], wanted: Any) -> str:
    """A key of :data:`REASONS`, or "" for a box to learn from.

    Args:
        annotation: checked annotation.
        size: width and height of its image.
        wanted: category ids to learn.
    """
    x, y, w, h = annotation["bbox"]
    if annotation["category_id"] not in wanted:
        return "class"
    if annotation.get("ignore"):
        return "ignore"
    if w < 1 or h < 1:
        return "thin"
    if min(x + w, size[0]) <= max(x, 0) or min(y + h, size[1]) <= max(y, 0):
        return "outside"
    if annotation["area"] <= 0:
        return "area"
    return CROWD if annotation.get("iscrowd") else ""


@dataclass
class TrainingBoxes:
    """The boxes of a file.

    Attributes:
        kept: boxes by image id, in file order; crowds are among them, as regions to ignore.
        used: boxes to learn from.
        left_out: counts by reason.
    """

    kept: dict[Any, list[dict[str, Any]]] = field(default_factory=dict)
    used: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def table(self) -> str:
        """What is learned from and what is left out, a line each."""
        total = self.used + sum(self.left_out.values())
        rows = [(self.used, "to learn from"), *((self.left_out[k], REASONS[k][0]) for k in REASONS if self.left_out[k])]
        return "\n".join([f"  {n:9,d}  {what}" for n, what in [(total, "boxes, of which"), *rows]])


def boxes_to_learn(truth: GroundTruth, wanted: Any) -> TrainingBoxes:
    """Sort the boxes of a file; ``wanted`` are the category ids to learn.

    Raises:
        UserError: for a box on an image whose size is not known.
    """
    out = TrainingBoxes()
    for a in truth.data["annotations"]:
        size = truth.image_sizes.get(a["image_id"])
        if size is None:
            raise UserError(
                f"{truth.path}: image {a['image_id']!r} has no width and height, and its picture is not at hand."
            )
        reason = reason_to_leave_out(a, size, wanted)
        if reason:
            out.left_out[reason] += 1
        else:
            out.used += 1
        if reason in ("", CROWD):
            out.kept.setdefault(a["image_id"], []).append(a)
    return out


def check_before_training(train: str | Path, train_images: Path, val: str | Path, val_images: Path) -> GroundTruth:
    """Read everything that a training will need, so that nothing fails when hours are spent.

    Args:
        train: annotations to learn from.
        train_images: folder of their pictures, each of which is decoded.
        val: annotations to test on.
        val_images: folder of their pictures.

    Returns:
        What is learned from.

    Raises:
        UserError: for files that the check of annotations refuses, pictures that cannot be read, and when no box is
            left to learn from.
    """
    truth, other = load_ground_truth(train), load_ground_truth(val)
    if not truth.data["annotations"]:
        raise UserError(f"{train} has no boxes to learn from.")
    foreign = sorted(set(other.categories.values()) - set(truth.categories.values()))
    if foreign:
        note(f"classes of {val} that {train} does not have: {', '.join(foreign[:10])}.")
    check_pictures(truth, train_images)
    check_pictures(other, val_images)
    boxes = boxes_to_learn(truth, truth.categories)
    refuse_nothing(boxes, str(train))
    if boxes.left_out:
        note(f"{train}:\n{boxes.table()}")
    return truth


def refuse_nothing(boxes: TrainingBoxes, where: str) -> None:
    """Refuse a file of which no box is left to learn from.

    Raises:
        UserError: with the reasons, their counts and what to do.
    """
    if boxes.used:
        return
    reasons = [f"{boxes.left_out[k]} {w} ({r})" for k, (w, r) in REASONS.items() if boxes.left_out[k]]
    raise UserError(f"{where} has no box to learn from" + (f"; left out: {'; '.join(reasons)}." if reasons else "."))
