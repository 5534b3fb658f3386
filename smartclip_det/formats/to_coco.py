"""Conversion of YOLO and VOC labels to COCO json; entry point of ``smartclip-det data to-coco``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.words import LABEL_LAYOUTS as LAYOUTS
from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.formats.converted import Converted
from smartclip_det.formats.json_files import read_json
from smartclip_det.formats.voc import voc_to_coco
from smartclip_det.formats.yolo import read_yolo_yaml, yolo_to_coco
from smartclip_det.utils.files import write_whole


@dataclass
class ToCocoOptions:
    """Options of the conversion.

    Attributes:
        layout: ``yolo`` or ``voc``.
        out: output COCO json.
        data: yolo: ``data.yaml``.
        split: yolo: split of ``data``.
        images: image folder.
        labels: yolo: label folder.
        names: class names in the order of their ids.
        rows: yolo: see ``yolo.ROWS``.
        xml: voc: folder of XML files.
        difficult: voc: see ``voc.DIFFICULT_RULES``.
    """

    layout: str
    out: Path
    data: Path | None = None
    split: str = "train"
    images: Path | None = None
    labels: Path | None = None
    names: Sequence[str] | None = None
    rows: str = "auto"
    xml: Path | None = None
    difficult: str = "ignore"


def categories_in(path: Path) -> list[str] | None:
    """Return the class names of a COCO json by id, to convert another split with the same classes.

    None for other files.
    """
    data = read_json(path, "file of class names") if path.suffix == ".json" else None
    if not isinstance(data, dict):
        return None
    try:
        numbered = sorted((c["id"], c["name"]) for c in data["categories"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} has no COCO categories ({error!r}).") from error
    if [i for i, _ in numbered] != list(range(1, len(numbered) + 1)):
        raise UserError(f"{path}: category ids must be 1 to {len(numbered)} to be reused for another split.")
    return [n for _, n in numbered]


def convert(options: ToCocoOptions) -> Converted:
    """Convert labels and write the COCO json; invalid labels raise an error before anything is written."""
    check_choice("layout", options.layout, LAYOUTS)
    if options.layout == "voc":
        if options.xml is None:
            raise UserError("voc needs --xml, the folder of xml files.")
        converted = voc_to_coco(options.xml, options.images, options.difficult, options.names)
    elif options.data is not None:
        source = read_yolo_yaml(options.data, options.split, options.images)
        converted = yolo_to_coco(
            source.images, source.names, options.labels, key_points=source.key_points, rows=options.rows
        )
        converted.notes.update(source.notes)
    elif options.images is not None and options.names is not None:
        converted = yolo_to_coco(options.images, options.names, options.labels, rows=options.rows)
    else:
        raise UserError("yolo needs --data data.yaml, or --images and class names.")
    # Make sure that every reader accepts the output.
    load_ground_truth(converted.data, where=str(options.out))
    write_whole(options.out, json.dumps(converted.data))
    return converted


def summary(options: ToCocoOptions, converted: Converted) -> list[str]:
    """Summarise what was written per class, and what was skipped by reason."""
    names_of = {c["id"]: c["name"] for c in converted.data["categories"]}
    counts = Counter(names_of[a["category_id"]] for a in converted.data["annotations"])
    crowds = sum(a["iscrowd"] for a in converted.data["annotations"])
    lines = [
        f"{options.out}: {len(converted.data['images'])} images, {len(converted.data['annotations'])} boxes "
        f"({crowds} to "
        "be ignored)"
    ]
    lines += [f"  {counts[name]:7d}  {name}" for name in names_of.values()]
    lines += [f"note: {count} {reason}." for reason, count in converted.notes.items() if count]
    if converted.root is not None:
        lines.append(f"File names are relative to {converted.root}.")
    if options.layout == "voc" and options.names is None:
        lines.append(
            f"The classes are those of {options.xml}; convert other splits with --vocabulary {options.out} to "
            "reuse them."
        )
    return lines
