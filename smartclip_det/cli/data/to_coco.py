"""Convert YOLO or VOC labels to COCO json, which every config and verb reads.

smartclip-det data to-coco yolo --data data.yaml --split train --out train.json
smartclip-det data to-coco yolo --images images/train --vocabulary names.txt --out train.json
smartclip-det data to-coco voc --xml VOC2007/Annotations --images VOC2007/JPEGImages --out voc07_test.json
smartclip-det data to-coco voc --xml own/val --vocabulary train.json --out val.json    # with the classes of train.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import Old
from smartclip_det.core.words import DIFFICULT_RULES, LABEL_LAYOUTS, YOLO_ROWS

OLD = (Old("--names", "--vocabulary"),)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add("layout", choices=LABEL_LAYOUTS, help="input label format")
    add("--out", type=Path, required=True, help="COCO json to write")
    add("--data", type=Path, help="yolo: data.yaml with class names and folders")
    add("--split", default="train", help="yolo: split in data.yaml")
    add("--images", type=Path, help="image folder")
    add("--labels", type=Path, help='yolo: label folder; default: --images with "images" replaced by "labels"')
    add(
        "--vocabulary",
        help="class names: .txt (one per line), .json, a known vocabulary (coco_80), or a COCO json whose classes "
        "to use; default for voc: the classes found in the labels",
    )
    add("--rows", choices=YOLO_ROWS, default="auto", help="yolo: how to read lines with more than four numbers")
    add("--xml", type=Path, help="voc: folder of XML files")
    add("--difficult", choices=DIFFICULT_RULES, default="ignore", help="voc: how to treat difficult objects")


def run(args: argparse.Namespace) -> None:
    """Convert and print a summary."""
    from smartclip_det.formats.to_coco import ToCocoOptions, categories_in, convert, summary
    from smartclip_det.models.vocabulary import resolve_names

    given = {k: v for k, v in vars(args).items() if k != "vocabulary"}
    names = args.vocabulary and (categories_in(Path(args.vocabulary)) or resolve_names(args.vocabulary))
    options = ToCocoOptions(**given, names=names)
    print("\n".join(summary(options, convert(options))))
