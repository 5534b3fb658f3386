"""Lowest scores by class, chosen on a few labelled pictures, for demo and label.

    smartclip-det calibrate --ann twenty.json --images photos/ --encoder smartclip-b16 --out thresholds.json
    smartclip-det calibrate --ann twenty.json --images photos/ --encoder smartclip-b16 --least-precision 0.9
    smartclip-det label photos/ --vocabulary names.txt --encoder smartclip-b16 --thresholds thresholds.json

Every box of the classes must be labelled in the pictures of the file (COCO json). A class gets the threshold with the
best F1, or the one at which most is found with --least-precision; a class with fewer than three boxes gets that of all
classes together. Precision and recall are told of pictures held out of the choice, with 95 % intervals: twenty pictures
leave them wide. Thresholds hold for the towers, boxes and tiles that they were chosen with.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import add_out, add_predictor, at_least, predictor_options


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add = parser.add_argument
    add("--ann", type=Path, required=True, help="COCO json of the labelled pictures")
    add("--images", type=Path, required=True, help="folder of the pictures")
    add("--least-precision", type=float, help="precision that is asked for; default: the best F1")
    add("--batch-size", type=at_least(1), default=8, help="pictures, or tiles, that are answered together")
    add("--tile", nargs=2, type=int, metavar=("SIDE", "OVERLAP"), help="cut large pictures into such tiles, in pixels")
    add("--max-detections", type=at_least(1), default=100, help="boxes of a picture, or tile, at most")
    add_predictor(parser)
    add_out(parser, "work_dirs/thresholds.json", "file of thresholds")


def run(args: argparse.Namespace) -> None:
    """Choose, print and write."""
    from smartclip_det.apis.calibration import CalibrateOptions, calibrate, calibration_table
    from smartclip_det.apis.predictor_options import PredictorOptions, load_predictor

    options = CalibrateOptions(
        ann=args.ann,
        images=args.images,
        out=args.out,
        least_precision=args.least_precision,
        batch_size=args.batch_size,
        tile=args.tile and tuple(args.tile),
        max_detections=args.max_detections,
    )
    print(calibration_table(calibrate(options, load_predictor(PredictorOptions(**predictor_options(args))))))
    print(f"written: {args.out}")
