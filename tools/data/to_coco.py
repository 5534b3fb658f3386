#!/usr/bin/env python
"""YOLO or VOC labels as a COCO json, which every config and tool reads.

python tools/data/to_coco.py yolo --data data.yaml --split train --out train.json
python tools/data/to_coco.py yolo --images images/train --names names.txt --out train.json
python tools/data/to_coco.py voc --xml VOC2007/Annotations --images VOC2007/JPEGImages --out voc07_test.json
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from smartclip_det.core.errors import UserError
from smartclip_det.formats.to_coco import DIFFICULT_RULES, read_yolo_yaml, voc_to_coco, yolo_to_coco
from smartclip_det.models.vocabulary import read_vocabulary
from smartclip_det.utils.cli import run_tool
from smartclip_det.utils.files import write_whole


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layout", choices=["yolo", "voc"])
    parser.add_argument("--out", type=Path, required=True, help="COCO json to write")
    parser.add_argument("--data", type=Path, help="yolo: data.yaml, for names and folders")
    parser.add_argument("--split", default="train", help="yolo: which folder of data.yaml")
    parser.add_argument("--images", type=Path, help="folder of images")
    parser.add_argument("--labels", type=Path, help='yolo: folder of labels; default: "images" replaced by "labels"')
    parser.add_argument("--names", type=Path, help="yolo without data.yaml: class names, one a line")
    parser.add_argument("--xml", type=Path, help="voc: folder of xml files")
    parser.add_argument("--difficult", choices=DIFFICULT_RULES, default="ignore", help="voc: difficult objects")
    return parser.parse_args()


def main() -> None:
    """Convert and tell what was found."""
    args = parse_args()
    if args.layout == "voc":
        if args.xml is None:
            raise UserError("voc needs --xml, the folder of xml files.")
        data = voc_to_coco(args.xml, args.images, args.difficult)
    elif args.data is not None:
        names, images = read_yolo_yaml(args.data, args.split)
        data = yolo_to_coco(args.images or images, names, args.labels)
    elif args.images is not None and args.names is not None:
        data = yolo_to_coco(args.images, read_vocabulary(args.names), args.labels)
    else:
        raise UserError("yolo needs --data data.yaml, or --images and --names.")
    write_whole(args.out, json.dumps(data))
    names_of = {c["id"]: c["name"] for c in data["categories"]}
    counts = Counter(names_of[a["category_id"]] for a in data["annotations"])
    crowds = sum(a["iscrowd"] for a in data["annotations"])
    print(f"{args.out}: {len(data['images'])} images, {len(data['annotations'])} boxes ({crowds} to be ignored)")
    for name in names_of.values():
        print(f"  {counts[name]:7d}  {name}")


if __name__ == "__main__":
    run_tool(main)
