"""Label a folder of images: writes a data set and an HTML review page.

    smartclip-det label photos/ --vocabulary names.txt --encoder smartclip-b16 --out labels
    smartclip-det label photos/ --vocabulary names.txt --encoder smartclip-b16 --thresholds t.json --format yolo
    smartclip-det label photos/ --texts "red mug" "left dog" --config CONFIG --checkpoint epoch_3.pth --format voc
    smartclip-det label aerial/ --vocabulary names.txt --encoder smartclip-b16 --boxes owlv2 --tile 640 100

PHOTOS is searched recursively. Detections are logged image by image, so an interrupted run resumes when the same
command is given again, and its output is byte-identical to that of an uninterrupted run. They are logged down to a low
score, so another --threshold, --thresholds (smartclip-det calibrate) or --format needs no new inference. Labels edited
in place are not overwritten without --overwrite.

Written to OUT: coco: annotations.json; yolo: data.yaml, images.txt, labels/ and images (a link to PHOTOS); voc:
Annotations/; label-studio: tasks.json and label_config.xml (serve PHOTOS as local files). Also review.html, least
certain images first, and summary.json. Exit code 2 if some images could not be read; the others are labelled.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import (
    add_detection,
    add_names,
    add_out,
    add_predictor,
    at_least,
    check_names,
    filled,
    names_of,
    tile_of,
)
from smartclip_det.core.errors import UserError
from smartclip_det.core.words import LABEL_FORMATS


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    source = parser.add_argument_group("images and class names")
    source.add_argument("photos", type=Path, help="image folder")
    add_names(source, "class names")

    add_predictor(parser.add_argument_group("predictor"))
    add_detection(parser.add_argument_group("detection"))

    output = parser.add_argument_group("output")
    add = output.add_argument
    add("--format", dest="layout", choices=LABEL_FORMATS, default=LABEL_FORMATS[0], help="output label format")
    add("--threshold", type=float, default=0.5, help="minimum score of a box; default 0.5")
    add("--thresholds", type=Path, help="per-class thresholds file, from smartclip-det calibrate")
    add("--review", type=at_least(0), default=200, help="images on the review page")
    add("--overwrite", action="store_true", help="overwrite labels even if they were edited after they were written")
    add_out(output, "work_dirs/labels", "output folder of the data set")


def run(args: argparse.Namespace) -> int:
    """Label the folder and print a summary."""
    check_names(args, "class names")
    if not args.photos.is_dir():
        raise UserError(f"{args.photos} is not a folder. Give a folder of images.")
    from smartclip_det.apis.labelling import LabelOptions, label_folder, summary_lines
    from smartclip_det.apis.predictor_options import PredictorOptions, load_predictor

    options = filled(LabelOptions, args, names=names_of(args), tile=tile_of(args))
    result = label_folder(options, load_predictor(filled(PredictorOptions, args)))
    print("\n".join(summary_lines(result)))
    return 2 if result.skipped else 0
