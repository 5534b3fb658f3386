"""Test a checkpoint by an MMEngine config, write predictions and stamped metrics.

    smartclip-det test CONFIG CHECKPOINT --out predictions.json
    smartclip-det evaluate ov-coco --ann ANNOTATIONS --pred predictions.json     # the same digits
    bash tools/dist_test.sh CONFIG CHECKPOINT 8 --out predictions.json

``--out`` takes .json (COCO result list) or .safetensors (columns, for large sets); the metrics are written beside it
as .metrics.json.
"""

from __future__ import annotations

import argparse

from smartclip_det.cli.options import add_run


def add_options(parser: argparse.ArgumentParser) -> None:
    """MMDetection's habits, nothing more."""
    add_run(parser)
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--out", help="predictions to write: .json or .safetensors; grounding: .jsonl")
    parser.add_argument("--show-dir", help="folder for pictures with detections")


def run(args: argparse.Namespace) -> None:
    """Test."""
    from smartclip_det.apis.running import TestOptions, test

    test(TestOptions(**vars(args)))
