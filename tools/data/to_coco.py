#!/usr/bin/env python
"""YOLO or VOC labels as a COCO json, which every config and tool reads.

python tools/data/to_coco.py yolo --data data.yaml --split train --out train.json
python tools/data/to_coco.py yolo --images images/train --names names.txt --out train.json
python tools/data/to_coco.py voc --xml VOC2007/Annotations --images VOC2007/JPEGImages --out voc07_test.json
python tools/data/to_coco.py voc --xml own/val --names train.json --out val.json    # the classes of train.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.formats.to_coco import LAYOUTS, ToCocoOptions, categories_in, convert, summary
from smartclip_det.formats.voc import DIFFICULT_RULES
from smartclip_det.formats.yolo import ROWS
from smartclip_det.models.vocabulary import read_vocabulary
from smartclip_det.utils.cli import run_tool


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layout", choices=LAYOUTS)
    parser.add_argument("--out", type=Path, required=True, help="COCO json to write")
    parser.add_argument("--data", type=Path, help="yolo: data.yaml, for names and folders")
    parser.add_argument("--split", default="train", help="yolo: which folder of data.yaml")
    parser.add_argument("--images", type=Path, help="folder of images")
    parser.add_argument("--labels", type=Path, help='yolo: folder of labels; default: "images" replaced by "labels"')
    parser.add_argument("--names", type=Path, help="class names, one a line, or a COCO json whose classes to use; voc: "
                        "default: the names found")  # fmt: skip
    parser.add_argument("--rows", choices=ROWS, default="auto", help="yolo: what lines of more than four numbers are")
    parser.add_argument("--xml", type=Path, help="voc: folder of xml files")
    parser.add_argument("--difficult", choices=DIFFICULT_RULES, default="ignore", help="voc: difficult objects")
    return parser.parse_args()


def main() -> None:
    """Convert and tell what was found."""
    args = parse_args()
    names = None if args.names is None else categories_in(args.names) or read_vocabulary(args.names)
    options = ToCocoOptions(**{**vars(args), "names": names})
    print("\n".join(summary(options, convert(options))))


if __name__ == "__main__":
    run_tool(main)
