"""Saved detections under small vocabularies: episodic AP, and false positives on classes that are not there.

    smartclip-det study vocabulary --ann instances_val2017.json --pred pred.json --sizes 10 30 80
    smartclip-det study vocabulary --ann lvis_v1_val.json --pred pred.safetensors --thresholds 0.1 0.3

Exact for scores that do not depend on the other names given (policy.activation="sigmoid"); for softmax runs it is an
approximation, which the report says where the metrics file beside the predictions tells.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("--ann", type=Path, required=True, help="COCO or LVIS annotations")
    parser.add_argument("--pred", type=Path, required=True, help="saved detections over the whole vocabulary")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 30, 100], help="names in a vocabulary")
    parser.add_argument(
        "--thresholds", type=float, nargs="+", default=[0.1, 0.3, 0.5], help="scores above which a box counts"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the vocabularies that are drawn")
    parser.add_argument("--out", type=Path, help="JSON to write; default: beside the predictions")


def run(args: argparse.Namespace) -> None:
    """Report each size."""
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
            print(f"note: {report['short_images']} images have too few classes known to be absent for {size} names.")
    if activation != "sigmoid":
        print(f"note: the scores' activation is {activation}; filtering afterwards is exact for sigmoid scores only.")
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
    """``softmax`` or ``sigmoid`` by the metrics file that a test run wrote beside its predictions."""
    from smartclip_det.formats.json_files import read_json

    beside = pred.with_suffix(".metrics.json")
    policy = read_json(beside, "metrics file")["protocol"].get("policy", {}) if beside.is_file() else {}
    return str(policy.get("activation", "unknown"))
