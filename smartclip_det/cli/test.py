"""Test a checkpoint with an MMEngine config; writes predictions and stamped metrics.

    smartclip-det test CONFIG CHECKPOINT --out predictions.json
    smartclip-det test CONFIG CHECKPOINT --out shuffled.json --control text_shuffled   # what do names contribute?
    smartclip-det evaluate ov-coco --ann ANNOTATIONS --pred predictions.json     # reproduces the metrics
    bash tools/dist_test.sh CONFIG CHECKPOINT 8 --out predictions.json

``--out`` takes .json (COCO result list) or .safetensors (columns, for large sets); the metrics are written to a
.metrics.json of the same name.
"""

from __future__ import annotations

import argparse

from smartclip_det.cli.options import add_run
from smartclip_det.core.words import CONTROLS


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options; names follow MMDetection's tools."""
    add_run(parser)
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--out", help="output predictions: .json or .safetensors; .jsonl for grounding")
    parser.add_argument("--show-dir", help="folder for images with drawn detections")
    parser.add_argument(
        "--control",
        choices=CONTROLS,
        default="none",
        help="chance control of a detector: score each class with the text of another one",
    )


def run(args: argparse.Namespace) -> None:
    """Test the checkpoint."""
    from smartclip_det.apis.running import TestOptions, test

    test(TestOptions(**vars(args)))
