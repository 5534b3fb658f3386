#!/usr/bin/env python
"""The score threshold between "none", "one" and "many", found on training or validation sentences.

    python tools/analysis/calibrate_grounding.py --ann train.jsonl --pred train_pred.jsonl --out threshold.json
    python tools/evaluate.py grefcoco --ann testA.jsonl --pred testA_pred.jsonl --score-threshold T

Never calibrate on the split that is reported: the split is in the output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.core.errors import UserError
from smartclip_det.formats.expressions.loading import load_expressions
from smartclip_det.formats.expressions.predictions import load_grounding_predictions
from smartclip_det.metrics.generalized_referring import calibrate_threshold
from smartclip_det.metrics.referring import OVERLAPS
from smartclip_det.protocols.stamp import file_hash, protocol_stamp, write_results
from smartclip_det.utils.cli import format_metrics, run_tool


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ann", required=True, help="expressions, with sentences of none and many")
    parser.add_argument("--split", help="train or val")
    parser.add_argument("--pred", required=True, help="tools/ground.py --answers all")
    parser.add_argument("--overlap", choices=OVERLAPS, default="giou")
    parser.add_argument("--measure", choices=["f1", "f1_mean"], default="f1", help="what is made best")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/grounding_threshold.json"))
    return parser.parse_args()


def main() -> None:
    """Search, tell, write."""
    args = parse_args()
    truth = load_expressions(args.ann, split=args.split, needs_sentences=False)
    splits = sorted({e.split for e in truth if e.split})
    if any(s.startswith("test") for s in splits):
        raise UserError(f"{args.ann} holds test sentences ({', '.join(splits)}): calibrate on --split train or val.")
    best, metrics = calibrate_threshold(truth, load_grounding_predictions(args.pred), overlap=args.overlap,
                                        measure=args.measure)  # fmt: skip
    print(f"--score-threshold {best:.6f}\n{format_metrics(metrics)}")
    stamp = protocol_stamp("calibrate_grounding", measure=args.measure, overlap=args.overlap, splits=splits,
                           ann_sha256=file_hash(args.ann), pred_sha256=file_hash(args.pred))  # fmt: skip
    print(f"written: {write_results(args.out, stamp, {'score_threshold': best, **metrics})}")


if __name__ == "__main__":
    run_tool(main)
