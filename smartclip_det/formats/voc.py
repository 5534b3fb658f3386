"""PASCAL VOC xml files as COCO-like annotations."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.formats.annotations import GroundTruth

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def load_voc_folder(folder: str | Path) -> GroundTruth:
    """Read a folder of VOC xml files as COCO-like annotations.

    Images are numbered from 1 in file-name order, categories by the 20 VOC names (1 to 20), or by the sorted
    names found when others occur. Boxes become x, y, xmax - xmin, ymax - ymin.
    """
    files = sorted(Path(folder).glob("*.xml"))
    if not files:
        raise UserError(f"No VOC xml files in {folder}.")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    objects: list[tuple[int, str, list[float], bool]] = []
    for number, path in enumerate(files, 1):
        try:
            root = ElementTree.parse(path).getroot()
        except ElementTree.ParseError as error:
            raise UserError(f"{path} is not valid xml ({error}).") from error
        size = root.find("size")
        image: dict[str, Any] = {"id": number, "file_name": root.findtext("filename") or f"{path.stem}.jpg"}
        if size is not None:
            image.update(width=_number(size, "width", path), height=_number(size, "height", path))
        images.append(image)
        for node in root.iter("object"):
            corners = [_number(node, f"bndbox/{k}", path) for k in ("xmin", "ymin", "xmax", "ymax")]
            objects.append((number, node.findtext("name") or "", corners, node.findtext("difficult") == "1"))
    found = sorted({o[1] for o in objects})
    names = VOC_CLASSES if set(found) <= set(VOC_CLASSES) else tuple(found)
    for i, (number, name, (x1, y1, x2, y2), difficult) in enumerate(objects, 1):
        annotations.append({"id": i, "image_id": number, "category_id": names.index(name) + 1, "iscrowd": 0,
                            "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
                            "difficult": int(difficult)})  # fmt: skip
    categories = [{"id": i, "name": n} for i, n in enumerate(names, 1)]
    sizes = {i["id"]: (i["width"], i["height"]) for i in images if "width" in i}
    data = {"images": images, "annotations": annotations, "categories": categories}
    return GroundTruth(data, str(folder), sizes)


def _number(node: ElementTree.Element, key: str, path: Path) -> float:
    try:
        return float(node.findtext(key) or "nothing")
    except ValueError as error:
        raise UserError(f"{path}: <{key.rsplit('/', 1)[-1]}> is missing or no number.") from error


def number_voc_images(results: Sequence[Any], truth: GroundTruth) -> list[Any]:
    """Results that name images by file stem (``2007_000027``) get the numbers of :func:`load_voc_folder`."""
    numbers = {Path(i["file_name"]).stem: i["id"] for i in truth.data["images"]}
    return [
        {**r, "image_id": numbers[Path(r["image_id"]).stem]}
        if isinstance(r, Mapping) and isinstance(r.get("image_id"), str) and Path(r["image_id"]).stem in numbers
        else r
        for r in results
    ]
