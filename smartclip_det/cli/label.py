"""Label a folder of photographs: a data set, and a page on which to look it over.

    smartclip-det label photos/ --vocabulary names.txt --encoder smartclip-b16 --out labels
    smartclip-det label photos/ --vocabulary names.txt --encoder smartclip-b16 --thresholds t.json --format yolo
    smartclip-det label photos/ --texts "red mug" "left dog" --config CONFIG --checkpoint epoch_3.pth --format voc
    smartclip-det label aerial/ --vocabulary names.txt --encoder smartclip-b16 --boxes owlv2 --tile 640 100

Folders in PHOTOS are searched, too. What is found is logged picture by picture: a run that was stopped goes on when the
same command is given again, and its files are then the same to the byte as those of a run that was not. Detections are
logged down to a low score, so that another --threshold, --thresholds (smartclip-det calibrate) or --format needs no
second look. Labels that were corrected in the place are not written over without --overwrite.

Written to OUT: coco: annotations.json; yolo: data.yaml, images.txt, labels/ and images (a link to PHOTOS); voc:
Annotations/; label-studio: tasks.json and label_config.xml (serve PHOTOS as local files). And review.html, least
certain pictures first; summary.json. Exit code 2 where pictures could not be read; the others are labelled.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import add_out, add_predictor, at_least, predictor_options
from smartclip_det.core.errors import UserError
from smartclip_det.core.words import LABEL_FORMATS


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add = parser.add_argument
    add("photos", type=Path, help="folder of photographs")
    add("--texts", nargs="+", default=[], help="class names, one per argument")
    add("--vocabulary", help="names: a known name (coco_80, ...), .txt with one a line, or .json list")
    add("--format", dest="layout", choices=LABEL_FORMATS, default=LABEL_FORMATS[0], help="of the labels")
    add("--threshold", type=float, default=0.5, help="lowest score of a box; default 0.5")
    add("--thresholds", type=Path, help="file of lowest scores by class, of smartclip-det calibrate")
    add("--batch-size", type=at_least(1), default=8, help="pictures, or tiles, that are answered together")
    add("--tile", nargs=2, type=int, metavar=("SIDE", "OVERLAP"), help="cut large pictures into such tiles, in pixels")
    add("--max-detections", type=at_least(1), default=100, help="boxes of a picture, or tile, at most")
    add("--review", type=at_least(0), default=200, help="pictures on the review page")
    add("--overwrite", action="store_true", help="also over labels that were corrected since they were written")
    add_predictor(parser)
    add_out(parser, "work_dirs/labels", "folder of the data set")


def run(args: argparse.Namespace) -> int:
    """Label, and say what was found, left out and written."""
    if not args.texts and not args.vocabulary:
        raise UserError("Nothing to look for: give --texts NAME... or --vocabulary NAMES.")
    if not args.photos.is_dir():
        raise UserError(f"{args.photos} is no folder of photographs.")
    from smartclip_det.apis.labelling import LabelOptions, label_folder, summary_lines
    from smartclip_det.apis.predictor_options import PredictorOptions, load_predictor
    from smartclip_det.models.vocabulary import resolve_names

    names = [*args.texts, *(resolve_names(args.vocabulary) if args.vocabulary else [])]
    options = LabelOptions(
        photos=args.photos,
        names=names,
        out=args.out,
        layout=args.layout,
        threshold=args.threshold,
        thresholds=args.thresholds,
        batch_size=args.batch_size,
        tile=args.tile and tuple(args.tile),
        max_detections=args.max_detections,
        review=args.review,
        overwrite=args.overwrite,
    )
    result = label_folder(options, load_predictor(PredictorOptions(**predictor_options(args))))
    print("\n".join(summary_lines(result)))
    return 2 if result.left_out else 0
