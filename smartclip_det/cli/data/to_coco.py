"""YOLO or VOC labels as a COCO json, which every config and verb reads.

smartclip-det data to-coco yolo --data data.yaml --split train --out train.json
smartclip-det data to-coco yolo --images images/train --vocabulary names.txt --out train.json
smartclip-det data to-coco voc --xml VOC2007/Annotations --images VOC2007/JPEGImages --out voc07_test.json
smartclip-det data to-coco voc --xml own/val --vocabulary train.json --out val.json    # the classes of train.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import Old
from smartclip_det.core.words import DIFFICULT_RULES, LABEL_LAYOUTS, YOLO_ROWS

OLD = (Old("--names", "--vocabulary"),)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add = parser.add_argument
    add("layout", choices=LABEL_LAYOUTS, help="layout of the labels")
    add("--out", type=Path, required=True, help="COCO json to write")
    add("--data", type=Path, help="yolo: data.yaml, for names and folders")
    add("--split", default="train", help="yolo: which folder of data.yaml")
    add("--images", type=Path, help="folder of images")
    add("--labels", type=Path, help='yolo: folder of labels; default: "images" replaced by "labels"')
    add(
        "--vocabulary",
        help="names: .txt with one a line, .json, a known name (coco_80), or a COCO json whose classes "
        "to use; voc: default: those found",
    )
    add("--rows", choices=YOLO_ROWS, default="auto", help="yolo: what lines of more than four numbers are")
    add("--xml", type=Path, help="voc: folder of xml files")
    add("--difficult", choices=DIFFICULT_RULES, default="ignore", help="voc: difficult objects")


def run(args: argparse.Namespace) -> None:
    """Convert and tell what was found."""
    from smartclip_det.formats.to_coco import ToCocoOptions, categories_in, convert, summary
    from smartclip_det.models.vocabulary import resolve_names

    given = {k: v for k, v in vars(args).items() if k != "vocabulary"}
    names = args.vocabulary and (categories_in(Path(args.vocabulary)) or resolve_names(args.vocabulary))
    options = ToCocoOptions(**given, names=names)
    print("\n".join(summary(options, convert(options))))
