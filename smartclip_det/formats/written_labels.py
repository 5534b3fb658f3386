"""Labels of one picture in the layouts that others read: COCO, YOLO, VOC, Label Studio.

Boxes are ``[N, 4]`` xyxy pixels of the picture as shown; every writer cuts them at its border. ``size`` is (width,
height). Labels are indices into the names; COCO numbers its categories from 1 (see ``converted.categories_of``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np

from smartclip_det.core.errors import UserError
from smartclip_det.utils.boxes import sides_of

#: Digits after the point: of pixels, of shares of a side, and of scores.
PIXELS, SHARES, SCORES = 2, 6, 4
#: Label Studio's names of the parts of a labelling set-up.
BOXES_NAME, IMAGE_NAME = "label", "image"


def check_size(size: Any) -> tuple[int, int]:
    """Width and height of a picture.

    Raises:
        UserError: for what is not two whole numbers above 0.
    """
    try:
        width, height = (int(v) for v in size)
    except (TypeError, ValueError) as error:
        raise UserError(f"The size of a picture is (width, height); given {size!r}.") from error
    if width < 1 or height < 1:
        raise UserError(f"The size of a picture is (width, height) of at least 1 pixel; given {size!r}.")
    return width, height


def inside(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``[N, 4]`` float64 boxes cut at the border of their picture.

    Raises:
        UserError: for a box that lies outside of it altogether: it is of another picture.
    """
    width, height = check_size(size)
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    far = (boxes[:, 0] > width) | (boxes[:, 1] > height) | (boxes[:, 2] < 0) | (boxes[:, 3] < 0)
    if far.any():
        box = [round(float(v), 1) for v in boxes[int(np.argmax(far))]]
        raise UserError(f"The box {box} lies outside of a picture of {width} x {height} pixels. Is it of another one?")
    return boxes.clip(0, [width, height, width, height])


def coco_results(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    image_id: int | str,
    categories: Sequence[int],
    masks: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """COCO results: ``bbox`` xywh pixels, as they are, without a cut; ``segmentation`` (RLE) with masks.

    Args:
        boxes: ``[N, 4]`` xyxy.
        scores: ``[N]``.
        labels: ``[N]``.
        image_id: of the picture.
        categories: id of each label.
        masks: ``[N, H, W]``; None without.
    """
    rows = [
        {"image_id": image_id, "category_id": categories[int(label)], "bbox": box, "score": float(score)}
        for box, score, label in zip(sides_of(boxes).tolist(), scores, labels, strict=True)
    ]
    if masks is None:
        return rows
    # Here, so that boxes need no pycocotools.
    from smartclip_det.formats.segmentations import encode_mask

    return [{**r, "segmentation": dict(encode_mask(np.asarray(m)))} for r, m in zip(rows, masks, strict=True)]


def coco_annotations(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, size: tuple[int, int]
) -> list[dict[str, Any]]:
    """COCO annotations of one picture, without ids; ``score`` is one key more than COCO has, and is left alone by it.

    Args:
        boxes: ``[N, 4]`` xyxy.
        scores: ``[N]``.
        labels: ``[N]``; the category is the label plus 1.
        size: of the picture.
    """
    rows = []
    for (x1, y1, x2, y2), score, label in zip(inside(boxes, size).tolist(), scores, labels, strict=True):
        w, h = x2 - x1, y2 - y1
        rows.append(
            {
                "category_id": int(label) + 1,
                "bbox": [round(v, PIXELS) for v in (x1, y1, w, h)],
                "area": round(w * h, PIXELS),
                "iscrowd": 0,
                "score": round(float(score), SCORES),
            }
        )
    return rows


def yolo_text(boxes: np.ndarray, labels: np.ndarray, size: tuple[int, int], scores: np.ndarray | None = None) -> str:
    """A label file: class, centre x, centre y, width, height as shares of the picture's sides, a line for each box.

    Args:
        boxes: ``[N, 4]`` xyxy.
        labels: ``[N]``.
        size: of the picture.
        scores: appended to the lines where given, as predictors write them; training labels have none.
    """
    width, height = check_size(size)
    lines = []
    for n, ((x1, y1, x2, y2), label) in enumerate(zip(inside(boxes, size).tolist(), labels, strict=True)):
        shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        score = "" if scores is None else f" {float(scores[n]):.{SCORES}f}"
        lines.append(f"{int(label)} {' '.join(f'{v:.{SHARES}f}' for v in shares)}{score}\n")
    return "".join(lines)


def voc_text(
    boxes: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    size: tuple[int, int],
    file_name: str,
    scores: np.ndarray | None = None,
) -> str:
    """A VOC xml; its corners count from 1, and are whole pixels that hold the box.

    Args:
        boxes: ``[N, 4]`` xyxy.
        labels: ``[N]``.
        names: of the labels.
        size: of the picture.
        file_name: of the picture.
        scores: written as ``confidence`` where given.
    """
    width, height = check_size(size)
    root = ElementTree.Element("annotation")
    _leaves(root, {"folder": "", "filename": file_name})
    _leaves(ElementTree.SubElement(root, "size"), {"width": width, "height": height, "depth": 3})
    _leaves(root, {"segmented": 0})
    for n, ((x1, y1, x2, y2), label) in enumerate(zip(inside(boxes, size).tolist(), labels, strict=True)):
        entry = ElementTree.SubElement(root, "object")
        _leaves(entry, {"name": names[int(label)], "pose": "Unspecified", "truncated": 0, "difficult": 0})
        if scores is not None:
            _leaves(entry, {"confidence": f"{float(scores[n]):.{SCORES}f}"})
        # Pixel n of VOC reaches from n - 1 to n.
        left, top = min(int(x1), width - 1) + 1, min(int(y1), height - 1) + 1
        right, bottom = max(left, int(np.ceil(x2))), max(top, int(np.ceil(y2)))
        _leaves(ElementTree.SubElement(entry, "bndbox"), {"xmin": left, "ymin": top, "xmax": right, "ymax": bottom})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _leaves(parent: ElementTree.Element, values: Mapping[str, object]) -> None:
    for tag, value in values.items():
        ElementTree.SubElement(parent, tag).text = str(value)


def studio_task(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    size: tuple[int, int],
    image: str,
    model: str = "smartclip_det",
) -> dict[str, Any]:
    """A task of Label Studio with the boxes as a prediction, to be accepted or corrected.

    Args:
        boxes: ``[N, 4]`` xyxy.
        scores: ``[N]``.
        labels: ``[N]``.
        names: of the labels.
        size: of the picture.
        image: address under which Label Studio finds the picture.
        model: what made the boxes.
    """
    width, height = check_size(size)
    results = []
    for n, ((x1, y1, x2, y2), label) in enumerate(zip(inside(boxes, size).tolist(), labels, strict=True)):
        shares = (x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height)
        value = {k: round(100 * v, SCORES) for k, v in zip(("x", "y", "width", "height"), shares, strict=True)}
        results.append(
            {
                "id": f"box{n}",
                "type": "rectanglelabels",
                "from_name": BOXES_NAME,
                "to_name": IMAGE_NAME,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {**value, "rotation": 0, "rectanglelabels": [names[int(label)]]},
                "score": round(float(scores[n]), SCORES),
            }
        )
    mean = round(float(np.mean(scores)), SCORES) if len(results) else 0.0
    return {"data": {IMAGE_NAME: image}, "predictions": [{"model_version": model, "score": mean, "result": results}]}


def studio_setup(names: Sequence[str]) -> str:
    """The labelling set-up (xml) that goes with the tasks."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=IMAGE_NAME, value=f"${IMAGE_NAME}")
    labels = ElementTree.SubElement(view, "RectangleLabels", name=BOXES_NAME, toName=IMAGE_NAME)
    for name in names:
        ElementTree.SubElement(labels, "Label", value=name)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"
