"""Choose a score threshold per class from a few labelled images, for demo and label.

    smartclip-det calibrate --ann twenty.json --images photos/ --encoder smartclip-b16 --out thresholds.json
    smartclip-det calibrate --ann twenty.json --images photos/ --encoder smartclip-b16 --least-precision 0.9
    smartclip-det label photos/ --vocabulary names.txt --encoder smartclip-b16 --thresholds thresholds.json

Every object of the listed classes must be labelled in the COCO json. Each class gets the threshold with the best F1,
or, with --least-precision, the one with the highest recall at that precision. A class with fewer than three boxes gets
the threshold of all classes pooled. Precision and recall are reported on held-out images with 95 % intervals, which are
wide for twenty images. Thresholds are only valid for the towers, box source and tiling they were chosen with.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import add_out, add_predictor, at_least, predictor_options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add("--ann", type=Path, required=True, help="COCO json of the labelled images")
    add("--images", type=Path, required=True, help="image folder")
    add("--least-precision", type=float, help="required precision; default: maximise F1")
    add("--batch-size", type=at_least(1), default=8, help="images (or tiles) per batch")
    add("--tile", nargs=2, type=int, metavar=("SIDE", "OVERLAP"), help="split large images into tiles of SIDE pixels")
    add("--max-detections", type=at_least(1), default=100, help="maximum detections per image or tile")
    add_predictor(parser)
    add_out(parser, "work_dirs/thresholds.json", "thresholds file")


def run(args: argparse.Namespace) -> None:
    """Choose the thresholds, print them and write the file."""
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
