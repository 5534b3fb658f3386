"""Which annotated boxes are used for training, by the rules of MMDetection's CocoDataset, and why others are not."""

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
#: Why a box is not used, and how to fix it if it should be.
REASONS = {
    "class": ("of a class that is not trained", "add it to the vocabulary (or to seen)"),
    "ignore": ("marked ignore", "set ignore to 0"),
    CROWD: ("crowd (iscrowd 1)", "set iscrowd to 0; CVAT marks every mask as a crowd"),
    "outside": ("outside the image", "boxes must be x, y, width, height in pixels of the image as displayed"),
    "area": ("with area 0", "remove the field: width x height is then used"),
    "thin": ("under a pixel wide or high", "boxes must be in pixels, not relative"),
}


def reason_to_leave_out(annotation: Mapping[str, Any], size: tuple[float, float], wanted: Any) -> str:
    """A key of :data:`REASONS`, or "" for a box to train on.

    Args:
        annotation: checked annotation.
        size: width and height of its image.
        wanted: category ids to train.
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
    """Boxes of a file, sorted by use.

    Attributes:
        kept: boxes by image id, in file order, including crowds, which are ignore regions.
        used: number of boxes to train on.
        left_out: counts by reason.
    """

    kept: dict[Any, list[dict[str, Any]]] = field(default_factory=dict)
    used: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def table(self) -> str:
        """Counts of used and unused boxes, one line each."""
        total = self.used + sum(self.left_out.values())
        rows = [(self.used, "to learn from"), *((self.left_out[k], REASONS[k][0]) for k in REASONS if self.left_out[k])]
        return "\n".join([f"  {n:9,d}  {what}" for n, what in [(total, "boxes, of which"), *rows]])


def boxes_to_learn(truth: GroundTruth, wanted: Any) -> TrainingBoxes:
    """Sort the boxes of a file; ``wanted`` are the category ids to train.

    Raises:
        UserError: for a box on an image of unknown size.
    """
    out = TrainingBoxes()
    for a in truth.data["annotations"]:
        size = truth.image_sizes.get(a["image_id"])
        if size is None:
            raise UserError(
                f"{truth.path}: image {a['image_id']!r} has no width and height, and its file was not found."
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
    """Read everything that a training needs, so that it does not fail after hours.

    Args:
        train: training annotations.
        train_images: folder of their images, all of which are decoded.
        val: validation annotations.
        val_images: folder of their images.

    Returns:
        The training annotations.

    Raises:
        UserError: for invalid annotations, unreadable images, or no box to train on.
    """
    truth, other = load_ground_truth(train), load_ground_truth(val)
    if not truth.data["annotations"]:
        raise UserError(f"{train} has no boxes to learn from.")
    untrained = sorted(set(other.categories.values()) - set(truth.categories.values()))
    if untrained:
        note(f"{val} has classes that {train} does not have: {', '.join(untrained[:10])}.")
    check_pictures(truth, train_images)
    check_pictures(other, val_images)
    boxes = boxes_to_learn(truth, truth.categories)
    refuse_nothing(boxes, str(train))
    if boxes.left_out:
        note(f"{train}:\n{boxes.table()}")
    return truth


def refuse_nothing(boxes: TrainingBoxes, where: str) -> None:
    """Raise if no box of a file can be used for training.

    Raises:
        UserError: with the reasons, their counts and how to fix them.
    """
    if boxes.used:
        return
    reasons = [f"{boxes.left_out[k]} {w} ({r})" for k, (w, r) in REASONS.items() if boxes.left_out[k]]
    raise UserError(f"{where} has no box to learn from" + (f"; left out: {'; '.join(reasons)}." if reasons else "."))
