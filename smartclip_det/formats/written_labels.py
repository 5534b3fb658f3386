"""Writers of labels of one image: COCO, YOLO, VOC, Label Studio.

Boxes are ``[N, 4]`` xyxy pixels of the image after EXIF rotation; writers clip them to the image. ``size`` is (width,
height). Labels are indices into the names; COCO categories are numbered from 1 (see ``converted.categories_of``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np

from smartclip_det.core.errors import UserError
from smartclip_det.utils.boxes import sides_of

#: Decimals of pixels, of relative coordinates, and of scores.
PIXELS, SHARES, SCORES = 2, 6, 4
#: Names of the controls in a Label Studio labelling config.
BOXES_NAME, IMAGE_NAME = "label", "image"


def check_size(size: Any) -> tuple[int, int]:
    """Check an image size (width, height).

    Raises:
        UserError: unless it is two positive integers.
    """
    try:
        width, height = (int(v) for v in size)
    except (TypeError, ValueError) as error:
        raise UserError(f"An image size must be (width, height); got {size!r}.") from error
    if width < 1 or height < 1:
        raise UserError(f"An image size must be (width, height) of at least 1 pixel; got {size!r}.")
    return width, height


def inside(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``[N, 4]`` float64 boxes, clipped to the image.

    Raises:
        UserError: for a box entirely outside the image, which probably belongs to another one.
    """
    width, height = check_size(size)
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    far = (boxes[:, 0] > width) | (boxes[:, 1] > height) | (boxes[:, 2] < 0) | (boxes[:, 3] < 0)
    if far.any():
        box = [round(float(v), 1) for v in boxes[int(np.argmax(far))]]
        raise UserError(
            f"The box {box} lies outside an image of {width} x {height} pixels. Does it belong to another one?"
        )
    return boxes.clip(0, [width, height, width, height])


def coco_results(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    image_id: int | str,
    categories: Sequence[int],
    masks: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Return COCO results: ``bbox`` xywh pixels, not clipped, and ``segmentation`` (RLE) if there are masks.

    Args:
        boxes: ``[N, 4]`` xyxy.
        scores: ``[N]``.
        labels: ``[N]``.
        image_id: id of the image.
        categories: id of each label.
        masks: ``[N, H, W]``, or None.
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
    """Return COCO annotations of one image, without ids; the extra key ``score`` is ignored by COCO tools.

    Args:
        boxes: ``[N, 4]`` xyxy.
        scores: ``[N]``.
        labels: ``[N]``; the category is the label plus 1.
        size: (width, height) of the image.
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
    """Return a label file: class, centre x, centre y, width, height relative to the image size, one line per box.

    Args:
        boxes: ``[N, 4]`` xyxy.
        labels: ``[N]``.
        size: (width, height) of the image.
        scores: appended to the lines if given, as in predictions; training labels have none.
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
    """Return a VOC XML; corners count from 1 and are integer pixels that enclose the box.

    Args:
        boxes: ``[N, 4]`` xyxy.
        labels: ``[N]``.
        names: class names.
        size: (width, height) of the image.
        file_name: file name of the image.
        scores: written as ``confidence`` if given.
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
        # Pixel n of VOC spans coordinates n - 1 to n.
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
    """Return a Label Studio task with the boxes as a prediction, to be accepted or corrected.

    Args:
        boxes: ``[N, 4]`` xyxy.
        scores: ``[N]``.
        labels: ``[N]``.
        names: class names.
        size: (width, height) of the image.
        image: URL of the image in Label Studio.
        model: name of the model version.
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
    """Return the labelling config (XML) for the tasks."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=IMAGE_NAME, value=f"${IMAGE_NAME}")
    labels = ElementTree.SubElement(view, "RectangleLabels", name=BOXES_NAME, toName=IMAGE_NAME)
    for name in names:
        ElementTree.SubElement(labels, "Label", value=name)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"
