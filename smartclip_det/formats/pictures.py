"""Images of annotation files: paths, sizes, and whether they can be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smartclip_det.core.errors import UserError
from smartclip_det.formats.annotations import GroundTruth
from smartclip_det.formats.boxes import outside
from smartclip_det.utils.notes import note
from smartclip_det.utils.parallel import map_in_processes

_ORIENTATION = 0x0112
#: Formats that OpenCV (used by MMDetection) decodes whenever Pillow does.
_COMMON = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
_NO_SIZE = "have no size in the file; the size of the image is used"
_SWAPPED = "have width and height swapped in the file (EXIF rotation); the size of the image is used"
_OTHER_SIZE = "differ in size from the file, so their boxes may be wrong"


def picture_name(image: Mapping[str, Any], where: str = "The annotations") -> str:
    """Return the file name of an image entry; for LVIS v1, the last two parts of its ``coco_url``.

    Raises:
        UserError: for an entry with neither.
    """
    name = image.get("file_name") or "/".join(str(image.get("coco_url") or "").split("/")[-2:])
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: image {image.get('id')!r} has neither file_name nor coco_url.")
    return name


def picture_path(folder: str | Path, image: Mapping[str, Any], where: str = "The annotations") -> Path:
    r"""Return the path of an image entry in a folder.

    Handles ``images\1.jpg`` from files made on Windows; for LVIS v1, the folder may be COCO's, or that of one split.
    """
    name = picture_name(image, where)
    path = Path(folder, name)
    if "\\" in name and not path.is_file():
        return Path(folder, name.replace("\\", "/"))
    if not image.get("file_name") and not path.is_file():
        inside = Path(folder, path.name)
        return inside if inside.is_file() else path
    return path


def picture_size(path: str | Path) -> tuple[int, int]:
    """Return (width, height) with the EXIF orientation applied (as MMDetection loads it), from the file header."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"The image {path} cannot be read ({error}).") from error


def fix_sizes(truth: GroundTruth, path_of: Callable[[Mapping[str, Any]], str | Path]) -> None:
    """Take sizes from the images if the file has none, or if boxes outside the image suggest that they are wrong.

    Boxes refer to the image after EXIF rotation; some exports write the stored size, with width and height swapped for
    rotated photos. Modifies ``truth``; fixes and mismatches are reported.
    """
    doubtful = {i["id"] for i in truth.data["images"]} - truth.image_sizes.keys() | _with_boxes_outside(truth)
    if not doubtful:
        return
    notes: dict[str, list[str]] = {}
    images = []
    for image in truth.data["images"]:
        path = Path(path_of(image)) if image["id"] in doubtful else None
        if path is None or not path.is_file():
            images.append(image)
            continue
        size, given = picture_size(path), truth.image_sizes.get(image["id"])
        if given is not None and size not in (given, given[::-1]):
            notes.setdefault(_OTHER_SIZE, []).append(str(path))
        elif size != given:
            notes.setdefault(_NO_SIZE if given is None else _SWAPPED, []).append(str(path))
            image = {**image, "width": size[0], "height": size[1]}
            truth.image_sizes[image["id"]] = size
        images.append(image)
    truth.data = {**truth.data, "images": images}
    for reason, paths in notes.items():
        note(f"{truth.path}: {len(paths)} images {reason} (first: {paths[0]}).")


def _with_boxes_outside(truth: GroundTruth) -> set[Any]:
    boxed = [a for a in truth.data["annotations"] if a["image_id"] in truth.image_sizes]
    if not boxed:
        return set()
    boxes = np.array([a["bbox"] for a in boxed], dtype=np.float64)
    sizes = np.array([truth.image_sizes[a["image_id"]] for a in boxed], dtype=np.float64)
    return {boxed[n]["image_id"] for n in np.flatnonzero(outside(boxes, sizes))}


def check_pictures(truth: GroundTruth, folder: str | Path) -> None:
    """Read every image of the annotations once, and fix wrong sizes.

    Raises:
        UserError: for missing and unreadable images; names the first ones and the reason.
    """
    images = truth.data["images"]
    paths = [picture_path(folder, i, truth.path) for i in images]
    lost = [p for p in paths if not p.is_file()]
    if lost:
        raise UserError(f"{len(lost)} of {len(images)} images are not in {folder}, e.g. {lost[0].name} ({lost[0]}).")
    faults = [f for f in map_in_processes(picture_fault, [str(p) for p in paths]) if f]
    if faults:
        raise UserError(
            f"{len(faults)} of {len(images)} images of {truth.path} cannot be read: {_some(faults)} Replace them, or "
            "remove them from the file."
        )
    fix_sizes(truth, lambda image: picture_path(folder, image, truth.path))


def _some(faults: Sequence[str]) -> str:
    return " ".join(faults[:5]) + (f" And {len(faults) - 5} more." if len(faults) > 5 else "")


def picture_fault(path: str) -> str:
    """Explain why training could not read an image; empty if it can."""
    from PIL import Image

    from smartclip_det.utils.images import open_rgb

    try:
        open_rgb(path)
    except UserError as error:
        return str(error)
    with Image.open(path) as image:
        kind = image.format
    if kind not in _COMMON:
        import cv2

        if cv2.imread(path) is None:
            return f"The image {path} is {kind}, which OpenCV does not read; save it as PNG."
    return ""
