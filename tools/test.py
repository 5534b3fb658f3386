#!/usr/bin/env python
"""Test a checkpoint by an MMEngine config, write predictions and stamped metrics.

    python tools/test.py CONFIG CHECKPOINT --out predictions.json
    python tools/evaluate.py ov-coco --ann ANNOTATIONS --pred predictions.json     # the same digits
    bash tools/dist_test.sh CONFIG CHECKPOINT 8 --out predictions.json

``--out`` takes .json (COCO result list) or .safetensors (columns, for large sets); the metrics are written beside it
as .metrics.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.runner import Runner

from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.engine.config import load_config
from smartclip_det.engine.launch import parse_run, prepare, refuse_foreign_checkpoint, run_parser, unwrapped
from smartclip_det.protocols.stamp import file_hash
from smartclip_det.utils.cli import run_tool

#: Metrics that write predictions, and what of a model belongs into their stamp.
OURS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "OpenVocabMetric": lambda model: {"policy": ScoringPolicy.from_dict(model.get("policy")).to_dict()},
    "ReferringMetric": lambda model: {"mask_mode": model.mask_mode, "towers": dict(model.towers)},
}


def parse_args() -> argparse.Namespace:
    """The command line: MMDetection's habits, nothing more."""
    parser = run_parser(__doc__)
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--out", help="predictions to write: .json or .safetensors; grounding: .jsonl")
    parser.add_argument("--show-dir", help="folder for pictures with detections")
    return parse_run(parser)


def main() -> None:
    """Build the runner and test."""
    args = parse_args()
    config = load_config(args.config, args.cfg_options)
    prepare(config, args.config, args.work_dir, args.launcher)
    if not Path(args.checkpoint).is_file():
        raise UserError(f"No checkpoint at {args.checkpoint}. tools/train.py prints where it wrote them.")
    config.load_from = args.checkpoint
    evaluator = config.test_evaluator
    if args.out:
        if evaluator.get("type") not in OURS:
            raise UserError(f"--out needs a test_evaluator of {' or '.join(OURS)}.")
        evaluator.out_file = args.out
        evaluator.metrics_file = str(Path(args.out).with_suffix(".metrics.json"))
    if evaluator.get("type") in OURS:
        evaluator.stamp = {
            "checkpoint_sha256": file_hash(args.checkpoint),
            "config": args.config,
            **OURS[evaluator.type](config.model),
            "seed": config.get("randomness", {}).get("seed"),
        }
    if args.show_dir:
        config.default_hooks.visualization.update(draw=True, test_out_dir=args.show_dir)
    runner = Runner.from_cfg(config)
    refuse_foreign_checkpoint(unwrapped(runner.model), args.checkpoint)
    runner.test()
    if args.out:
        runner.logger.info(f"Predictions: {args.out}\nMetrics:     {evaluator.metrics_file}")


if __name__ == "__main__":
    run_tool(main)
