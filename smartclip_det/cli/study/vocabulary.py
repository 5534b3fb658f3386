"""Evaluate saved detections with small vocabularies: episodic AP, and false positives on absent classes.

    smartclip-det study vocabulary --ann instances_val2017.json --pred pred.json --sizes 10 30 80
    smartclip-det study vocabulary --ann lvis_v1_val.json --pred pred.safetensors --thresholds 0.1 0.3

Exact for scores that do not depend on the other class names (policy.activation="sigmoid"). For softmax scores it is an
approximation; the report says so if the metrics file next to the predictions records the activation.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("--ann", type=Path, required=True, help="COCO or LVIS annotations")
    parser.add_argument("--pred", type=Path, required=True, help="saved detections with the full vocabulary")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 30, 100], help="vocabulary sizes")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.1, 0.3, 0.5], help="score thresholds")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampled vocabularies")
    parser.add_argument("--out", type=Path, help="output JSON; default: next to the predictions")


def run(args: argparse.Namespace) -> None:
    """Report the metrics for each vocabulary size."""
    from smartclip_det.formats.annotations import load_ground_truth
    from smartclip_det.formats.predictions import check_predictions, read_predictions
    from smartclip_det.probing.vocabulary_report import vocabulary_report
    from smartclip_det.protocols.stamp import file_hash, protocol_stamp, write_results

    truth = load_ground_truth(args.ann)
    results, counts = check_predictions(read_predictions(args.pred, truth), truth)
    activation = activation_of(args.pred)
    by_size = {str(s): vocabulary_report(truth, results, s, args.thresholds, args.seed) for s in args.sizes}
    print("names  threshold  AP50    false positives per image   on absent  absent names")
    print("                          on absent   on present      (share)    that fired")
    for size, report in by_size.items():
        for threshold, row in report["thresholds"].items():
            wrong = row["false_positives"]
            cells = [
                f"{size:>5s}",
                f"{threshold:>9s}",
                f"{report['ap50']:.4f}",
                f"{wrong['on_absent']:9.3f}",
                f" {wrong['on_present']:10.3f}",
                f"     {row['share_on_absent']:7.3f}",
                f"  {row['absent_fired']:7.3f}",
            ]
            print("  ".join(cells))
        if report["short_images"]:
            print(
                f"note: {report['short_images']} images have too few classes known to be absent for a "
                f"vocabulary of {size}."
            )
    if activation != "sigmoid":
        print(
            f"note: the activation of these scores is {activation}; filtering saved detections is exact for "
            "sigmoid only."
        )
    stamp = protocol_stamp(
        "vocabulary-report",
        activation=activation,
        exact=activation == "sigmoid",
        sizes=args.sizes,
        seed=args.seed,
        iou=0.5,
        ann_sha256=file_hash(args.ann),
        pred_sha256=file_hash(args.pred),
    )
    out = args.out or args.pred.with_suffix(".vocabulary.json")
    print(f"written: {write_results(out, stamp, by_size, counts=counts)}")


def activation_of(pred: Path) -> str:
    """Return ``softmax`` or ``sigmoid`` from the metrics file of the test run, or ``unknown``."""
    from smartclip_det.formats.json_files import read_json

    metrics_file = pred.with_suffix(".metrics.json")
    policy = read_json(metrics_file, "metrics file")["protocol"].get("policy", {}) if metrics_file.is_file() else {}
    return str(policy.get("activation", "unknown"))
