"""Choose the score threshold that separates no, one and several targets, on training or validation sentences.

    smartclip-det study calibrate --ann train.jsonl --pred train_pred.jsonl --out threshold.json
    smartclip-det evaluate grefcoco --ann testA.jsonl --pred testA_pred.jsonl --threshold T

Never calibrate on the split that is reported. The output records the split.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.core.errors import UserError
from smartclip_det.core.rules import OVERLAPS
from smartclip_det.utils.cli import format_metrics


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument(
        "--ann", required=True, help="expressions, including sentences with no and with several targets"
    )
    parser.add_argument("--split", help="train or val")
    parser.add_argument("--pred", required=True, help="predictions of smartclip-det ground --answers all")
    parser.add_argument("--overlap", choices=OVERLAPS, default="giou", help="overlap measure for matching boxes")
    parser.add_argument("--measure", choices=["f1", "f1_mean"], default="f1", help="metric to maximise")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/grounding_threshold.json"), help="JSON output")


def run(args: argparse.Namespace) -> None:
    """Search for the threshold, print and write it."""
    from smartclip_det.formats.expressions.loading import load_expressions
    from smartclip_det.formats.expressions.predictions import load_grounding_predictions
    from smartclip_det.metrics.generalized_referring import calibrate_threshold
    from smartclip_det.protocols.stamp import file_hash, protocol_stamp, write_results

    truth = load_expressions(args.ann, split=args.split, needs_sentences=False)
    splits = sorted({e.split for e in truth if e.split})
    if any(s.startswith("test") for s in splits):
        raise UserError(f"{args.ann} contains test sentences ({', '.join(splits)}): calibrate on --split train or val.")
    best, metrics = calibrate_threshold(
        truth, load_grounding_predictions(args.pred), overlap=args.overlap, measure=args.measure
    )
    print(f"--threshold {best:.6f}\n{format_metrics(metrics)}")
    stamp = protocol_stamp(
        "calibrate_grounding",
        measure=args.measure,
        overlap=args.overlap,
        splits=splits,
        ann_sha256=file_hash(args.ann),
        pred_sha256=file_hash(args.pred),
    )
    print(f"written: {write_results(args.out, stamp, {'score_threshold': best, **metrics})}")
