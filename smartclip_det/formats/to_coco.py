"""Labels of other layouts as a COCO json: one entry for what ``to_coco`` can do."""

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
    """What to convert, and how.

    Attributes:
        layout: ``yolo`` or ``voc``.
        out: COCO json to write.
        data: yolo: ``data.yaml``.
        split: yolo: split of ``data``.
        images: folder of pictures.
        labels: yolo: folder of labels.
        names: class names in the order of their ids.
        rows: yolo: see ``yolo.ROWS``.
        xml: voc: folder of xml files.
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
    """Class names of a COCO json, by id, so that a split gets the classes of another; None for another file."""
    data = read_json(path, "file of class names") if path.suffix == ".json" else None
    if not isinstance(data, dict):
        return None
    try:
        numbered = sorted((c["id"], c["name"]) for c in data["categories"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} has no COCO categories ({error!r}).") from error
    if [i for i, _ in numbered] != list(range(1, len(numbered) + 1)):
        raise UserError(f"{path}: category ids must run from 1 to {len(numbered)} to be given to another split.")
    return [n for _, n in numbered]


def convert(options: ToCocoOptions) -> Converted:
    """Convert labels and write the COCO json; every fault of the labels is refused before anything is written."""
    check_choice("layout", options.layout, LAYOUTS)
    if options.layout == "voc":
        if options.xml is None:
            raise UserError("voc needs --xml, the folder of xml files.")
        found = voc_to_coco(options.xml, options.images, options.difficult, options.names)
    elif options.data is not None:
        source = read_yolo_yaml(options.data, options.split, options.images)
        found = yolo_to_coco(
            source.images, source.names, options.labels, key_points=source.key_points, rows=options.rows
        )
        found.told.update(source.told)
    elif options.images is not None and options.names is not None:
        found = yolo_to_coco(options.images, options.names, options.labels, rows=options.rows)
    else:
        raise UserError("yolo needs --data data.yaml, or --images and class names.")
    # What is written is what every reader takes.
    load_ground_truth(found.data, where=str(options.out))
    write_whole(options.out, json.dumps(found.data))
    return found


def summary(options: ToCocoOptions, found: Converted) -> list[str]:
    """What was written, by class, and what was left out, by reason."""
    names_of = {c["id"]: c["name"] for c in found.data["categories"]}
    counts = Counter(names_of[a["category_id"]] for a in found.data["annotations"])
    crowds = sum(a["iscrowd"] for a in found.data["annotations"])
    lines = [
        f"{options.out}: {len(found.data['images'])} images, {len(found.data['annotations'])} boxes ({crowds} to "
        "be ignored)"
    ]
    lines += [f"  {counts[name]:7d}  {name}" for name in names_of.values()]
    lines += [f"note: {count} {reason}." for reason, count in found.told.items() if count]
    if found.root is not None:
        lines.append(f"File names are relative to {found.root}.")
    if options.layout == "voc" and options.names is None:
        lines.append(
            f"The classes are those of {options.xml}; give other splits the same ones with --names {options.out}."
        )
    return lines
