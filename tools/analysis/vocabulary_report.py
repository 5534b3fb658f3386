#!/usr/bin/env python
"""Saved detections under small vocabularies: episodic AP, and false positives on classes that are not there.

    python tools/analysis/vocabulary_report.py --ann instances_val2017.json --pred pred.json --sizes 10 30 80
    python tools/analysis/vocabulary_report.py --ann lvis_v1_val.json --pred pred.safetensors --thresholds 0.1 0.3

Exact for scores that do not depend on the other names given (policy.activation="sigmoid"); for softmax runs it is an
approximation, which the report says where the metrics file beside the predictions tells.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.formats.json_files import read_json
from smartclip_det.formats.predictions import check_predictions, read_predictions
from smartclip_det.probing.vocabulary_report import vocabulary_report
from smartclip_det.protocols.stamp import file_hash, protocol_stamp, write_results
from smartclip_det.utils.cli import run_tool


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ann", type=Path, required=True, help="COCO or LVIS annotations")
    parser.add_argument("--pred", type=Path, required=True, help="saved detections over the whole vocabulary")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 30, 100], help="names in a vocabulary")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.1, 0.3, 0.5])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON to write; default: beside the predictions")
    return parser.parse_args()


def activation_of(pred: Path) -> str:
    """``softmax`` or ``sigmoid`` by the metrics file that a test run wrote beside its predictions."""
    beside = pred.with_suffix(".metrics.json")
    policy = read_json(beside, "metrics file")["protocol"].get("policy", {}) if beside.is_file() else {}
    return str(policy.get("activation", "unknown"))


def main() -> None:
    """Report each size."""
    args = parse_args()
    truth = load_ground_truth(args.ann)
    results, counts = check_predictions(read_predictions(args.pred, truth), truth)
    activation = activation_of(args.pred)
    by_size = {str(s): vocabulary_report(truth, results, s, args.thresholds, args.seed) for s in args.sizes}
    print("names  threshold  AP50    false positives per image   on absent  absent names")
    print("                          on absent   on present      (share)    that fired")
    for size, report in by_size.items():
        for threshold, row in report["thresholds"].items():
            wrong = row["false_positives"]
            cells = [f"{size:>5s}", f"{threshold:>9s}", f"{report['ap50']:.4f}", f"{wrong['on_absent']:9.3f}",
                     f" {wrong['on_present']:10.3f}", f"     {row['share_on_absent']:7.3f}",
                     f"  {row['absent_fired']:7.3f}"]  # fmt: skip
            print("  ".join(cells))
        if report["short_images"]:
            print(f"note: {report['short_images']} images have too few classes known to be absent for {size} names.")
    if activation != "sigmoid":
        print(f"note: the scores' activation is {activation}; filtering afterwards is exact for sigmoid scores only.")
    stamp = protocol_stamp(
        "vocabulary-report", activation=activation, exact=activation == "sigmoid", sizes=args.sizes, seed=args.seed,
        iou=0.5, ann_sha256=file_hash(args.ann), pred_sha256=file_hash(args.pred),
    )  # fmt: skip
    out = args.out or args.pred.with_suffix(".vocabulary.json")
    print(f"written: {write_results(out, stamp, by_size, counts=counts)}")


if __name__ == "__main__":
    run_tool(main)
