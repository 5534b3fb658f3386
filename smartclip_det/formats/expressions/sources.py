"""Expressions out of benchmarks with layouts of their own: D-cube, FG-OVD, Ref-L4 and Flickr30k Entities.

Boxes are xyxy pixels.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.formats.detections import read_json
from smartclip_det.formats.expressions.files import Expression
from smartclip_det.metrics.described_objects import load_fgovd

_PHRASE = re.compile(r"\[/EN#(\d+)/([^ ]+) ([^\]]+)\]")


def source_of(path: Path) -> str:
    """``dcube``, ``fgovd`` or ``ref-l4`` for their files, ``ref-l4`` or ``flickr-entities`` for a folder, or empty."""
    if path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet"))):
        return "ref-l4"
    if path.is_dir():
        return "flickr-entities"
    if path.suffix != ".json":
        return ""
    data = read_json(path, "expression file")
    if not isinstance(data, Mapping) or any(k not in data for k in ("images", "annotations", "categories")):
        return ""
    if any("neg_category_ids" in a for a in data["annotations"]):
        return "fgovd"
    told = any("sent_ids" in i for i in data["images"]) or any("is_negative" in c for c in data["categories"])
    return "dcube" if told else ""


def read_dcube(path: str | Path) -> list[Expression]:
    """D-cube (arXiv 2307.12813) as COCO annotations: each sentence that is asked of an image, with its boxes or none.

    Asked are the ``sent_ids`` of the image (its scenario); without them, the sentences that have a box in it.

    Raises:
        UserError: for a sentence that the file does not have.
    """
    data = read_json(path, "D-cube file")
    names = {c["id"]: c["name"] for c in data["categories"]}
    boxes: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
    for a in data["annotations"]:
        boxes.setdefault((a["image_id"], a["category_id"]), []).append(a)
    out = []
    for image in data["images"]:
        own = [c for i, c in boxes if i == image["id"]] if "sent_ids" not in image else image["sent_ids"]
        for sentence in own:
            if sentence not in names:
                raise UserError(
                    f"{path}: image {image['id']} asks for sentence {sentence}, which the file does not have."
                )
            mine = boxes.get((image["id"], sentence), [])
            out.append(_expression(f"{image['id']}_{sentence}", image, names[sentence], mine, "dcube"))
    return out


def read_fgovd(path: str | Path) -> list[Expression]:
    """FG-OVD: each object's own caption. Its negatives are for ``tools/evaluate.py fgovd``, which reads the file."""
    data = load_fgovd(path)
    names = {c["id"]: c["name"] for c in data["categories"]}
    images = {i["id"]: i for i in data["images"]}
    return [
        _expression(a["id"], images[a["image_id"]], names[a["category_id"]], [a], "fgovd") for a in data["annotations"]
    ]


def read_ref_l4(path: str | Path) -> list[Expression]:
    """Ref-L4 (arXiv 2406.16866): one parquet file of sentences, or all of a folder (``ref-l4-val.parquet`` and test).

    Raises:
        UserError: without pyarrow (extra ``ref-l4``), for a broken file, or one without the benchmark's columns.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            "Ref-L4 comes as parquet files, which need pyarrow: pip install 'smartclip_det[ref-l4]'."
        ) from error
    path, out = Path(path), []
    for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        try:
            rows = parquet.read_table(file).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{file} is not a readable parquet file; it may be cut short. ({error})") from error
        lacking = [k for k in ("id", "caption", "bbox", "file_name", "ori_category_id") if rows and k not in rows[0]]
        if lacking:
            raise UserError(
                f"{file} is no Ref-L4 file: it has no column {', '.join(lacking)}; it has {', '.join(rows[0])}."
            )
        for row in rows:
            x, y, w, h = (float(v) for v in row["bbox"])
            out.append(Expression(
                row["id"], row.get("image_id", row["file_name"]), row["file_name"], row["caption"],
                ((x, y, x + w, y + h),), int(row.get("width") or 0), int(row.get("height") or 0), dataset="ref-l4",
                split=row.get("split") or file.stem.rpartition("-")[2], category=str(row["ori_category_id"]),
            ))  # fmt: skip
    return out


def _expression(
    key: int | str, image: Mapping[str, Any], sentence: str, annotations: list[dict[str, Any]], dataset: str
) -> Expression:
    corners = tuple((x, y, x + w, y + h) for x, y, w, h in (a["bbox"] for a in annotations))
    masks = tuple(a["segmentation"] for a in annotations if a.get("segmentation"))
    return Expression(
        key, image["id"], image["file_name"], sentence, corners, int(image.get("width", 0)),
        int(image.get("height", 0)), dataset=dataset, ann_ids=tuple(a["id"] for a in annotations),
        masks=masks if len(masks) == len(corners) else (),
    )  # fmt: skip


def read_flickr_entities(folder: str | Path) -> list[Expression]:
    """Flickr30k Entities (arXiv 1505.04870): each phrase of each caption, with all boxes of its entity.

    Args:
        folder: holds ``Sentences/NAME.txt``, ``Annotations/NAME.xml``, and may hold ``train.txt``, ``val.txt`` and
            ``test.txt`` with names. Phrases of entities without a box (scenes, other captions) come with none.

    Raises:
        UserError: for missing folders or a caption without its annotations.
    """
    folder = Path(folder)
    texts = sorted((folder / "Sentences").glob("*.txt"))
    if not texts:
        raise UserError(f"{folder} is no Flickr30k Entities folder: it needs Sentences/*.txt and Annotations/*.xml.")
    splits = {}
    for split in ("train", "val", "test"):
        listed = folder / f"{split}.txt"
        if listed.is_file():
            splits.update(dict.fromkeys(listed.read_text(encoding="utf-8").split(), split))
    out = []
    for text in texts:
        boxes, size = _entities(folder / "Annotations" / f"{text.stem}.xml")
        for n, line in enumerate(text.read_text(encoding="utf-8").splitlines()):
            for k, (entity, _kind, phrase) in enumerate(_PHRASE.findall(line)):
                out.append(Expression(
                    f"{text.stem}_{n}_{k}", text.stem, f"{text.stem}.jpg", phrase, tuple(boxes.get(entity, ())), *size,
                    split=splits.get(text.stem, ""), dataset="flickr30k-entities",
                ))  # fmt: skip
    return out


def _entities(path: Path) -> tuple[dict[str, list[tuple[float, float, float, float]]], tuple[int, int]]:
    """Boxes by entity, and width and height."""
    if not path.is_file():
        raise UserError(f"No annotations at {path}: every file of Sentences needs its own.")
    try:
        root = ET.parse(path).getroot()
        size = (int(root.findtext("size/width", "0")), int(root.findtext("size/height", "0")))
        boxes: dict[str, list[tuple[float, float, float, float]]] = {}
        for thing in root.iter("object"):
            for box in thing.iter("bndbox"):
                x1, y1, x2, y2 = (float(box.findtext(k, "nan")) for k in ("xmin", "ymin", "xmax", "ymax"))
                for name in thing.iter("name"):
                    boxes.setdefault(str(name.text), []).append((x1, y1, x2, y2))
    except (ET.ParseError, ValueError) as error:
        raise UserError(f"{path} cannot be read as Flickr30k Entities annotations ({error}).") from error
    return boxes, size
