"""Labels of other layouts as COCO annotations: YOLO text files and VOC xml files.

Sizes are those of the image as readers show it, turned by its EXIF orientation, which is what MMDetection loads and
what people label.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.formats.voc import load_voc_folder

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
DIFFICULT_RULES = ("ignore", "keep", "drop")
_ORIENTATION = 0x0112


def image_size(path: Path) -> tuple[int, int]:
    """Width and height as shown, from the file's head."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else image.size
    except OSError as error:
        raise UserError(f"The image {path} cannot be read ({error}).") from error


def read_yolo_yaml(path: Path, split: str) -> tuple[list[str], Path]:
    """Class names and image folder of one split of a YOLO data file.

    Raises:
        UserError: for a missing or broken file, one without names, or a split that it does not have.
    """
    if not path.is_file():
        raise UserError(f"No YOLO data file at {path}. Check the path.")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML ({error}).") from error
    names = data.get("names") if isinstance(data, dict) else None
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise UserError(f"{path}: names must be numbered from 0 without gaps; given {sorted(names)[:5]}...")
        names = [names[k] for k in sorted(names)]
    if not isinstance(names, list) or not names:
        raise UserError(f"{path} has no names: a list, or a map from number to name.")
    if not isinstance(data.get(split), str):
        known = [k for k in ("train", "val", "test") if isinstance(data.get(k), str)]
        raise UserError(f"{path} has no folder for the split {split!r}. It has: {', '.join(known) or 'none'}.")
    root = path.parent / (data.get("path") or "")
    return [str(n) for n in names], root / data[split]


def yolo_to_coco(images: Path, names: Sequence[str], labels: Path | None = None) -> dict[str, Any]:
    """COCO annotations of a folder of images with YOLO labels.

    Args:
        images: folder of images, searched in depth; ``file_name`` is relative to it.
        names: class names by number.
        labels: folder of ``.txt`` files of the same relative names; default: ``images`` with its last part named
            "images" replaced by "labels", which is YOLO's rule.

    Raises:
        UserError: for folders without images, label files without an image, and lines that cannot be read, naming
            file and line.
    """
    if not images.is_dir():
        raise UserError(f"No image folder at {images}.")
    labels = labels or _label_folder(images)
    if not labels.is_dir():
        raise UserError(f"No label folder at {labels}. Give it by --labels.")
    files = sorted(p for p in images.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(f"No images in {images} ({', '.join(IMAGE_SUFFIXES)}).")
    known = {p.relative_to(images).with_suffix(".txt") for p in files}
    lost = sorted(p for p in (q.relative_to(labels) for q in labels.rglob("*.txt")) if p not in known)
    lost = [p for p in lost if p.name != "classes.txt"]
    if lost:
        raise UserError(f"{len(lost)} label files in {labels} have no image in {images}, e.g. {lost[0]}.")
    out: dict[str, Any] = {"images": [], "annotations": [], "categories": _categories(names)}
    for number, path in enumerate(files, 1):
        width, height = image_size(path)
        name = path.relative_to(images)
        out["images"].append({"id": number, "file_name": name.as_posix(), "width": width, "height": height})
        text = labels / name.with_suffix(".txt")
        for record in _yolo_records(text, len(names), width, height) if text.is_file() else ():
            out["annotations"].append({"id": len(out["annotations"]) + 1, "image_id": number, "iscrowd": 0, **record})
    return out


def _label_folder(images: Path) -> Path:
    parts = list(images.parts)
    if "images" not in parts:
        raise UserError(f'{images} has no part named "images" to replace by "labels". Give the folder by --labels.')
    last = len(parts) - 1 - parts[::-1].index("images")
    return Path(*parts[:last], "labels", *parts[last + 1 :])


def _categories(names: Sequence[str]) -> list[dict[str, Any]]:
    twice = sorted({n for n in names if list(names).count(n) > 1})
    if twice:
        raise UserError(f"Class names must differ; given twice: {', '.join(twice[:5])}.")
    return [{"id": i, "name": n} for i, n in enumerate(names, 1)]


def _yolo_records(path: Path, classes: int, width: int, height: int) -> Iterator[dict[str, Any]]:
    for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {n}"
        try:
            number, *values = [float(v) for v in line.split()]
        except ValueError as error:
            raise UserError(f"{where} holds something else than numbers: {line!r:.60}.") from error
        if number != int(number) or not 0 <= number < classes:
            raise UserError(f"{where}: class {number:g} of {classes} (0 to {classes - 1}).")
        if not all(math.isfinite(v) and -0.01 <= v <= 1.01 for v in values):
            raise UserError(f"{where}: coordinates must be shares of the image, 0 to 1: {line!r:.60}.")
        if len(values) == 4:
            cx, cy, w, h = values
            box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
            yield {"category_id": int(number) + 1, "bbox": box, "area": box[2] * box[3]}
        elif len(values) >= 6 and len(values) % 2 == 0:
            polygon = [v * (height if i % 2 else width) for i, v in enumerate(values)]
            xs, ys = polygon[::2], polygon[1::2]
            box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
            yield {"category_id": int(number) + 1, "bbox": box, "area": _area(xs, ys), "segmentation": [polygon]}
        else:
            raise UserError(f"{where} has {len(values)} coordinates: 4 for a box, or 3 and more points of an outline.")


def _area(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of a polygon (shoelace formula)."""
    turned = zip(xs, [*ys[1:], ys[0]], [*xs[1:], xs[0]], ys, strict=True)
    return abs(sum(a * b - c * d for a, b, c, d in turned)) / 2


def voc_to_coco(xml_folder: Path, images: Path | None = None, difficult: str = "ignore") -> dict[str, Any]:
    """COCO annotations of VOC xml files.

    VOC counts pixels from 1 and both corners are inside of the box: pixels xmin to xmax cover xmin - 1 to xmax.

    Args:
        xml_folder: folder of xml files.
        images: folder of images, for sizes that the xml files lack.
        difficult: what becomes of difficult objects: ``ignore`` (crowd regions: neither wanted nor punished),
            ``keep`` or ``drop``.
    """
    check_choice("difficult", difficult, DIFFICULT_RULES)
    truth = load_voc_folder(xml_folder)
    data = truth.data
    for image in data["images"]:
        if "width" in image:
            image.update(width=int(image["width"]), height=int(image["height"]))
        else:
            if images is None:
                raise UserError(f"{image['file_name']}: the xml file has no size. Give the image folder by --images.")
            image["width"], image["height"] = image_size(images / image["file_name"])
    boxes: list[dict[str, Any]] = []
    for a in data["annotations"]:
        hard = bool(a.pop("difficult"))
        if hard and difficult == "drop":
            continue
        x, y, w, h = a["bbox"]
        box = [x - 1, y - 1, w + 1, h + 1]
        boxes.append({**a, "id": len(boxes) + 1, "bbox": box, "area": box[2] * box[3],
                      "iscrowd": int(hard and difficult == "ignore")})  # fmt: skip
    return {"images": data["images"], "annotations": boxes, "categories": data["categories"]}
