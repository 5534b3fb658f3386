"""PASCAL VOC XML files: reading, and conversion to COCO annotations.

VOC counts pixels from 1, with both corners inside the box: pixels xmin to xmax cover coordinates xmin - 1 to xmax.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError, check_choice, unknown_names
from smartclip_det.core.words import DIFFICULT_RULES
from smartclip_det.formats.annotations import GroundTruth, load_ground_truth
from smartclip_det.formats.converted import Converted, PictureFolder, categories_of, refuse_lost, slashed
from smartclip_det.formats.pictures import picture_size
from smartclip_det.formats.texts import decode_text, is_text

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
#: Encoding declared in the first line of an XML file.
_DECLARED = re.compile(rb"<\?xml[^>]*?encoding\s*=\s*[\"']([^\"']+)[\"']")
#: GB2312 and GBK are subsets of GB18030, and files often declare a subset of what they use.
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030"}
_YES, _NO = ("1", "true", "yes", "y", "t"), ("0", "false", "no", "n", "f", "", "unspecified", "none")


@dataclass
class VocFile:
    """One VOC XML file.

    Attributes:
        path: path of the file.
        file_name: image name, with slashes; empty if missing.
        size: (width, height); None if missing or invalid.
        objects: name, (xmin, ymin, xmax, ymax) and whether it is difficult.
    """

    path: Path
    file_name: str
    size: tuple[int, int] | None
    objects: list[tuple[str, list[float], bool]]


def read_voc_xml(path: str | Path) -> VocFile:
    """Read one XML file, in the encoding that it declares.

    Raises:
        UserError: naming the file, for wrong encodings, invalid XML, and objects without a name or a box.
    """
    path = Path(path)
    root = _root(path)
    voc = VocFile(path, slashed(_text(root, "filename")), _size(root), [])
    for n, node in enumerate(root.iter("object"), 1):
        where = f"{path}, object {n}"
        name = _text(node, "name")
        if not name:
            raise UserError(f"{where} has no <name>. Add a name, or remove it.")
        corners = [_number(node, f"bndbox/{k}", where) for k in ("xmin", "ymin", "xmax", "ymax")]
        if corners[2] < corners[0] or corners[3] < corners[1]:
            raise UserError(f"{where} ({name}): the corners are swapped: xmin, ymin, xmax, ymax = {corners}.")
        voc.objects.append((name, corners, _is_difficult(node, where)))
    return voc


def _root(path: Path) -> ElementTree.Element:
    content = path.read_bytes()
    declared = _DECLARED.search(content[:300])
    encoding = declared[1].decode("ascii", "replace").lower() if declared else "utf-8"
    if b"\0" in content[:4]:
        encoding = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
    try:
        plain = encoding in ("utf-8", "utf8", "utf-16") or content[:2] in (b"\xff\xfe", b"\xfe\xff")
        text = decode_text(content) if plain else content.decode(_WIDER.get(encoding, encoding))
        if not is_text(text):
            raise UnicodeError("some bytes cannot be decoded")
        # ElementTree supports few encodings, so it gets decoded text.
        root = ElementTree.fromstring(text.strip("\ufeff \t\r\n"))
    except (UnicodeError, LookupError) as error:
        raise UserError(
            f"{path} cannot be decoded as {encoding!r} ({error}). Save it as UTF-8, and declare that in the first line."
        ) from error
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path} is not valid XML ({error}).") from error
    if root.tag != "annotation":
        raise UserError(f"{path} is not a VOC file: expected <annotation>, found <{root.tag}>.")
    return root


def _text(node: ElementTree.Element, key: str) -> str:
    """Return the text of a tag, without the whitespace of pretty-printed files."""
    return " ".join((node.findtext(key) or "").split())


def _number(node: ElementTree.Element, key: str, where: str) -> float:
    try:
        value = float(_text(node, key) or "nothing")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: <{key.rsplit('/', 1)[-1]}> is missing or not a number.")
    return value


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Parse the image size; None if labelling tools could not open the image and wrote 0 x 0 or nothing."""
    try:
        width, height = (round(float(_text(root, f"size/{k}"))) for k in ("width", "height"))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _is_difficult(node: ElementTree.Element, where: str) -> bool:
    value = _text(node, "difficult").lower()
    if value not in (*_YES, *_NO):
        raise UserError(f"{where}: <difficult> is {value!r}; expected 0 or 1.")
    return value in _YES


def read_voc_folder(folder: str | Path) -> list[VocFile]:
    """Read all XML files of a folder recursively, by name.

    Raises:
        UserError: for a folder without any, and for two files about one image.
    """
    files = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() == ".xml")
    if not files:
        raise UserError(f"No VOC XML files in {folder}.")
    parsed = [read_voc_xml(p) for p in files]
    twice = [n for n, count in Counter(f.file_name for f in parsed if f.file_name).items() if count > 1]
    if twice:
        names = [f.path.name for f in parsed if f.file_name == twice[0]]
        raise UserError(
            f"{folder}: {len(twice)} images are named by several XML files, e.g. {twice[0]} by "
            f"{' and '.join(names[:3])}. Fix <filename>."
        )
    return parsed


def load_voc_folder(folder: str | Path) -> GroundTruth:
    """Read a folder of VOC XML files as ground truth of the VOC protocol.

    Images are numbered from 1 in file-name order. Categories are the 20 VOC names (1 to 20), or the sorted names in the
    files if others occur. Boxes become x, y, xmax - xmin, ymax - ymin.
    """
    files = read_voc_folder(folder)
    used = sorted({name for f in files for name, _, _ in f.objects})
    names = list(VOC_CLASSES) if set(used) <= set(VOC_CLASSES) else used
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, f in enumerate(files, 1):
        size = {} if f.size is None else {"width": f.size[0], "height": f.size[1]}
        images.append({"id": number, "file_name": f.file_name or f"{f.path.stem}.jpg", **size})
        for name, (x1, y1, x2, y2), difficult in f.objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": names.index(name) + 1,
                    "iscrowd": 0,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "difficult": int(difficult),
                }
            )
    data = {"images": images, "annotations": annotations, "categories": categories_of(names)}
    return load_ground_truth(data, where=str(folder))


def number_voc_images(results: Sequence[Any], truth: GroundTruth) -> list[Any]:
    """Replace image file stems (``2007_000027``) in results by the numbers of :func:`load_voc_folder`."""
    numbers = {Path(i["file_name"]).stem: i["id"] for i in truth.data["images"]}
    return [
        {**r, "image_id": numbers[Path(r["image_id"]).stem]}
        if isinstance(r, Mapping) and isinstance(r.get("image_id"), str) and Path(r["image_id"]).stem in numbers
        else r
        for r in results
    ]


def voc_to_coco(
    xml_folder: Path, images: Path | None = None, difficult: str = "ignore", names: Sequence[str] | None = None
) -> Converted:
    """Convert VOC XML files to COCO annotations.

    Args:
        xml_folder: folder of XML files.
        images: image folder: all images must exist, names without suffix are looked up, and sizes are taken from the
            images.
        difficult: rule for difficult objects: ``ignore`` (crowd regions, neither required nor penalised), ``keep`` or
            ``drop``.
        names: class names in the order of their ids, the same for all splits; None: sorted names of this folder.

    Raises:
        UserError: for names that are not in ``names``, missing images, and unknown sizes.
    """
    check_choice("difficult", difficult, DIFFICULT_RULES)
    files = read_voc_folder(xml_folder)
    used = sorted({name for f in files for name, _, _ in f.objects})
    classes = used if names is None else list(names)
    unknown = [n for n in used if n not in set(classes)]
    if unknown:
        raise unknown_names("class names", unknown, classes, f"They occur in {xml_folder}; add them to the list.")
    notes: Counter[str] = Counter()
    data: dict[str, Any] = {"images": [], "annotations": [], "categories": categories_of(classes)}
    places = _pictures(files, images, notes)
    for number, (f, name) in enumerate(zip(files, places, strict=True), 1):
        width, height = _size_of(f, None if images is None else images / name, notes)
        data["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        for category, (x1, y1, x2, y2), hard in f.objects:
            if hard and difficult == "drop":
                notes["difficult objects dropped"] += 1
                continue
            box = [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]
            data["annotations"].append(
                {
                    "id": len(data["annotations"]) + 1,
                    "image_id": number,
                    "category_id": classes.index(category) + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(hard and difficult == "ignore"),
                }
            )
    return Converted(data, images, notes)


def _pictures(files: Sequence[VocFile], images: Path | None, notes: Counter[str]) -> list[str]:
    """Return the image of each file, relative to the image folder."""
    if images is None:
        notes["images named without a suffix: --images DIR looks them up"] += sum(
            bool(f.file_name) and not Path(f.file_name).suffix for f in files
        )
        return [f.file_name or f"{f.path.stem}.jpg" for f in files]
    folder = PictureFolder(images)
    names = [f.file_name or f.path.stem for f in files]
    paths = [folder.find(name) for name in names]
    refuse_lost((name for name, place in zip(names, paths, strict=True) if place is None), len(names), images)
    notes["images matched by a longer name than in the XML file"] += sum(
        a != b for a, b in zip(names, paths, strict=True)
    )
    places = [place for place in paths if place is not None]
    twice = [n for n, count in Counter(places).items() if count > 1]
    if twice:
        raise UserError(f"{len(twice)} images belong to several XML files, e.g. {twice[0]}. Fix <filename>.")
    return places


def _size_of(f: VocFile, picture: Path | None, notes: Counter[str]) -> tuple[int, int]:
    if picture is None:
        if f.size is None:
            raise UserError(f"{f.path}: the XML file has no size (or 0). Give the image folder with --images.")
        return f.size
    size = picture_size(picture)
    if f.size is None:
        notes["sizes taken from the image: the XML file has none"] += 1
    elif f.size == size[::-1] != size:
        notes["sizes taken from the image: width and height are swapped in the XML file"] += 1
    elif f.size != size:
        notes["sizes taken from the image: the XML file has others, so boxes may be wrong"] += 1
    return size
