"""PASCAL VOC xml files: read, and turned into COCO annotations.

VOC counts pixels from 1 and both corners are inside of the box: pixels xmin to xmax cover xmin - 1 to xmax.
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
#: What becomes of difficult objects in a conversion.
_DECLARED = re.compile(rb"<\?xml[^>]*?encoding\s*=\s*[\"']([^\"']+)[\"']")
#: Chinese files name the oldest of three encodings that contain each other.
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030"}
_YES, _NO = ("1", "true", "yes", "y", "t"), ("0", "false", "no", "n", "f", "", "unspecified", "none")


@dataclass
class VocFile:
    """One xml file.

    Attributes:
        path: the file.
        file_name: picture, with slashes; empty where the file names none.
        size: width and height; None where the file has none that can be.
        objects: name, (xmin, ymin, xmax, ymax) and whether it is marked difficult.
    """

    path: Path
    file_name: str
    size: tuple[int, int] | None
    objects: list[tuple[str, list[float], bool]]


def read_voc_xml(path: str | Path) -> VocFile:
    """Read one xml file in any encoding that it declares.

    Raises:
        UserError: naming the file, for other encodings, broken xml, and objects without a name or a box.
    """
    path = Path(path)
    root = _root(path)
    found = VocFile(path, slashed(_text(root, "filename")), _size(root), [])
    for n, node in enumerate(root.iter("object"), 1):
        where = f"{path}, object {n}"
        name = _text(node, "name")
        if not name:
            raise UserError(f"{where} has no <name>. Name it, or take it out.")
        corners = [_number(node, f"bndbox/{k}", where) for k in ("xmin", "ymin", "xmax", "ymax")]
        if corners[2] < corners[0] or corners[3] < corners[1]:
            raise UserError(f"{where} ({name}): the box ends before it begins: xmin, ymin, xmax, ymax = {corners}.")
        found.objects.append((name, corners, _is_difficult(node, where)))
    return found


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
            raise UnicodeError("some bytes are no text in it")
        # A text, so that the parser, which knows few encodings, goes by none.
        root = ElementTree.fromstring(text.strip("\ufeff \t\r\n"))
    except (UnicodeError, LookupError) as error:
        raise UserError(
            f"{path} cannot be read in the encoding {encoding!r} ({error}). Save it as UTF-8, and let its "
            "first line say so."
        ) from error
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path} is not valid xml ({error}).") from error
    if root.tag != "annotation":
        raise UserError(f"{path} is no VOC file: it holds <{root.tag}>, where <annotation> is needed.")
    return root


def _text(node: ElementTree.Element, key: str) -> str:
    """The words under a tag; pretty-printed files put them on lines of their own."""
    return " ".join((node.findtext(key) or "").split())


def _number(node: ElementTree.Element, key: str, where: str) -> float:
    try:
        value = float(_text(node, key) or "nothing")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: <{key.rsplit('/', 1)[-1]}> is missing or no number.")
    return value


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Labelling tools write 0 x 0, or nothing, where they could not open the picture."""
    try:
        width, height = (round(float(_text(root, f"size/{k}"))) for k in ("width", "height"))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _is_difficult(node: ElementTree.Element, where: str) -> bool:
    value = _text(node, "difficult").lower()
    if value not in (*_YES, *_NO):
        raise UserError(f"{where}: <difficult> is {value!r}; 0 or 1 is needed.")
    return value in _YES


def read_voc_folder(folder: str | Path) -> list[VocFile]:
    """All xml files of a folder and of those in it, by name.

    Raises:
        UserError: for a folder without any, and for two files about one picture.
    """
    files = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() == ".xml")
    if not files:
        raise UserError(f"No VOC xml files in {folder}.")
    found = [read_voc_xml(p) for p in files]
    twice = [n for n, count in Counter(f.file_name for f in found if f.file_name).items() if count > 1]
    if twice:
        both = [f.path.name for f in found if f.file_name == twice[0]]
        raise UserError(
            f"{folder}: {len(twice)} pictures are named by several xml files, e.g. {twice[0]} by "
            f"{' and '.join(both[:3])}. Mend <filename>."
        )
    return found


def load_voc_folder(folder: str | Path) -> GroundTruth:
    """Read a folder of VOC xml files as ground truth of the VOC protocol.

    Images are numbered from 1 in file-name order, categories by the 20 VOC names (1 to 20), or by the sorted
    names found when others occur. Boxes become x, y, xmax - xmin, ymax - ymin.
    """
    files = read_voc_folder(folder)
    found = sorted({name for f in files for name, _, _ in f.objects})
    names = list(VOC_CLASSES) if set(found) <= set(VOC_CLASSES) else found
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
    """Results that name images by file stem (``2007_000027``) get the numbers of :func:`load_voc_folder`."""
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
    """COCO annotations of VOC xml files.

    Args:
        xml_folder: folder of xml files.
        images: folder of pictures: every one must be there, one named without suffix is looked for, and sizes are
            theirs.
        difficult: what becomes of difficult objects: ``ignore`` (crowd regions: neither wanted nor punished),
            ``keep`` or ``drop``.
        names: classes in the order of their ids, the same for all splits; None: the sorted names of this folder.

    Raises:
        UserError: for names that are not in ``names``, missing pictures, and sizes that nothing tells.
    """
    check_choice("difficult", difficult, DIFFICULT_RULES)
    files = read_voc_folder(xml_folder)
    found = sorted({name for f in files for name, _, _ in f.objects})
    classes = found if names is None else list(names)
    foreign = [n for n in found if n not in set(classes)]
    if foreign:
        raise unknown_names("class names", foreign, classes, f"They stand in {xml_folder}; list them, too.")
    told: Counter[str] = Counter()
    data: dict[str, Any] = {"images": [], "annotations": [], "categories": categories_of(classes)}
    places = _pictures(files, images, told)
    for number, (f, name) in enumerate(zip(files, places, strict=True), 1):
        width, height = _size_of(f, None if images is None else images / name, told)
        data["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        for category, (x1, y1, x2, y2), hard in f.objects:
            if hard and difficult == "drop":
                told["difficult objects left out"] += 1
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
    return Converted(data, images, told)


def _pictures(files: Sequence[VocFile], images: Path | None, told: Counter[str]) -> list[str]:
    """The picture of each file, relative to the folder of pictures."""
    if images is None:
        told["pictures named without a suffix: --images DIR looks for them"] += sum(
            bool(f.file_name) and not Path(f.file_name).suffix for f in files
        )
        return [f.file_name or f"{f.path.stem}.jpg" for f in files]
    folder = PictureFolder(images)
    asked = [f.file_name or f.path.stem for f in files]
    found = [folder.find(name) for name in asked]
    refuse_lost((name for name, place in zip(asked, found, strict=True) if place is None), len(asked), images)
    told["pictures found under a fuller name than the xml file gives"] += sum(
        a != b for a, b in zip(asked, found, strict=True)
    )
    places = [place for place in found if place is not None]
    twice = [n for n, count in Counter(places).items() if count > 1]
    if twice:
        raise UserError(f"{len(twice)} pictures belong to several xml files, e.g. {twice[0]}. Mend <filename>.")
    return places


def _size_of(f: VocFile, picture: Path | None, told: Counter[str]) -> tuple[int, int]:
    if picture is None:
        if f.size is None:
            raise UserError(f"{f.path}: the xml file has no size (or 0). Give the image folder by --images.")
        return f.size
    size = picture_size(picture)
    if f.size is None:
        told["sizes taken from the picture: the xml file has none"] += 1
    elif f.size == size[::-1] != size:
        told["sizes taken from the picture: width and height are swapped in the xml file"] += 1
    elif f.size != size:
        told["sizes taken from the picture: the xml file has others, its boxes may not fit"] += 1
    return size
