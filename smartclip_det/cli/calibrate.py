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

from smartclip_det.cli.options import add_detection, add_out, add_predictor, filled, tile_of


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument_group("images").add_argument
    add("--ann", type=Path, required=True, help="COCO json of the labelled images")
    add("--images", type=Path, required=True, help="image folder")

    add_predictor(parser.add_argument_group("predictor"))
    add_detection(parser.add_argument_group("detection"))

    output = parser.add_argument_group("thresholds")
    output.add_argument("--least-precision", type=float, help="required precision; default: maximise F1")
    add_out(output, "work_dirs/thresholds.json", "thresholds file")


def run(args: argparse.Namespace) -> None:
    """Choose the thresholds, print them and write the file."""
    from smartclip_det.apis.calibration import CalibrateOptions, calibrate, calibration_table
    from smartclip_det.apis.predictor_options import PredictorOptions, load_predictor

    predictor = load_predictor(filled(PredictorOptions, args))
    print(calibration_table(calibrate(filled(CalibrateOptions, args, tile=tile_of(args)), predictor)))
    print(f"written: {args.out}")
