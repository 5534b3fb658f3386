"""Box files: boxes of images, by image name. Boxes are xyxy pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError, nearest
from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.formats.boxes import is_box, is_number
from smartclip_det.formats.json_files import read_json
from smartclip_det.formats.pictures import picture_name
from smartclip_det.formats.predictions import check_predictions, read_predictions
from smartclip_det.utils.boxes import to_xyxy

FORMS = (
    'COCO annotations, a COCO result list (with the annotations that name its images), or {"street.jpg": '
    '[[x1, y1, x2, y2], ...]} (or {"boxes": ..., "scores": ...} per image)'
)


@dataclass
class PictureBoxes:
    """Boxes of one image.

    Attributes:
        boxes: R xyxy boxes.
        scores: R scores in [0, 1]; 1 if the file has none.
        size: (width, height) of the image, if the file has it.
    """

    boxes: list[list[float]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    size: tuple[float, float] | None = None


@dataclass
class BoxFile:
    """Boxes by image name.

    Attributes:
        path: path of the file.
        pictures: boxes by the image name in the file.
    """

    path: str
    pictures: dict[str, PictureBoxes]

    def __post_init__(self) -> None:
        self._by_last: dict[str, list[str]] = {}
        for name in self.pictures:
            self._by_last.setdefault(Path(name).name, []).append(name)

    def of(self, name: str) -> PictureBoxes:
        """Return the boxes of an image: those of the longest name in the file that its path ends with.

        Raises:
            UserError: for an image without a name, a name that is not in the file, or an ambiguous one.
        """
        if not name:
            raise UserError(
                f"{self.path} looks boxes up by file name, but this image has none. Pass a path, or the boxes "
                "themselves: set_image(image, boxes=[[x1, y1, x2, y2], ...])."
            )
        parts = Path(name).parts
        matches = [n for n in self._by_last.get(Path(name).name, []) if parts[-len(Path(n).parts) :] == Path(n).parts]
        if not matches:
            # The image may be in another folder: fall back to its bare file name.
            matches = self._by_last.get(Path(name).name, [])
        if not matches:
            near = ", ".join(nearest(Path(name).name, self._by_last)) or "none"
            raise UserError(
                f"{self.path} has no boxes of {Path(name).name}, only of {len(self.pictures)} other images (nearest: "
                f"{near}). List images without boxes with an empty list."
            )
        longest = max(len(Path(n).parts) for n in matches)
        best = [n for n in matches if len(Path(n).parts) == longest]
        if len(best) > 1:
            raise UserError(f"{self.path} has several images that match {name}: {', '.join(best[:3])}.")
        return self.pictures[best[0]]


def read_boxes(path: str | Path, instances: str | Path | None = None) -> BoxFile:
    """Read a box file.

    Args:
        path: one of :data:`FORMS`.
        instances: COCO annotations that name the images of a result list.

    Raises:
        UserError: for a missing or broken file, another form, and a result list without ``instances``.
    """
    if instances is not None:
        return _of_results(path, instances)
    data = read_json(path, "file of boxes")
    if isinstance(data, list):
        raise UserError(
            f"{path} is a result list, which refers to images by id only. Pass the annotations that name them, "
            "FileBoxes(path, instances=annotations), or use another format: " + FORMS + "."
        )
    if isinstance(data, dict) and "images" in data and "annotations" in data:
        return _of_annotations(data, str(path))
    if not isinstance(data, dict) or not data:
        raise UserError(f"{path} does not have boxes by image. Accepted: {FORMS}.")
    return BoxFile(str(path), {str(k): _of_entry(v, f"{path}: {k}") for k, v in data.items()})


def _of_entry(value: Any, where: str) -> PictureBoxes:
    """Parse boxes, or boxes and scores."""
    boxes = value.get("boxes") if isinstance(value, Mapping) else value
    if not isinstance(boxes, list):
        raise UserError(f"{where} does not have a list of boxes. Accepted: {FORMS}.")
    for n, box in enumerate(boxes):
        if not is_box(box):
            raise UserError(f"{where}: box {n} must be four numbers [x1, y1, x2, y2]; given {box!r:.80}.")
    given = value.get("scores") if isinstance(value, Mapping) else None
    scores = [1.0] * len(boxes) if given is None else given
    good = isinstance(scores, list) and len(scores) == len(boxes)
    if not good or not all(is_number(s) and 0 <= s <= 1 for s in scores):
        raise UserError(f"{where}: scores must be a number in [0, 1] for each of the {len(boxes)} boxes.")
    return PictureBoxes([[float(v) for v in b] for b in boxes], [float(s) for s in scores])


def _of_annotations(data: dict[str, Any], where: str) -> BoxFile:
    truth = load_ground_truth({"categories": [], **data}, where=where)
    boxes = {i["id"]: PictureBoxes(size=truth.image_sizes.get(i["id"])) for i in truth.data["images"]}
    for a in truth.data["annotations"]:
        if not a.get("iscrowd"):
            boxes[a["image_id"]].boxes.append(list(to_xyxy(a["bbox"])))
            boxes[a["image_id"]].scores.append(1.0)
    return BoxFile(where, {picture_name(i, where): boxes[i["id"]] for i in truth.data["images"]})


def _of_results(path: str | Path, instances: str | Path) -> BoxFile:
    truth = load_ground_truth(instances, need_annotations=False)
    results, _ = check_predictions(read_predictions(path, truth), truth)
    boxes = {i["id"]: PictureBoxes(size=truth.image_sizes.get(i["id"])) for i in truth.data["images"]}
    for row in sorted(results, key=lambda r: -r["score"]):
        entry = boxes[row["image_id"]]
        entry.boxes.append(list(to_xyxy(row["bbox"])))
        entry.scores.append(min(1.0, max(0.0, float(row["score"]))))
    return BoxFile(str(path), {picture_name(i, str(instances)): boxes[i["id"]] for i in truth.data["images"]})
