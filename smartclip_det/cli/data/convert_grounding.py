"""Convert referring expressions between annotation layouts, without loss, and report the counts.

    smartclip-det data convert-grounding "refcoco/refs(unc).p" refcoco.jsonl --check refcoco-unc
    smartclip-det data convert-grounding "grefcoco/grefs(unc).json" grefcoco_train.jsonl --split train
    smartclip-det data convert-grounding refcoco.jsonl finetune_refcoco_val.json --to mdetr --split val
    smartclip-det data convert-grounding unc+_testA.pth testA.jsonl
    smartclip-det data convert-grounding flickr30k_entities/ flickr.jsonl
    smartclip-det data convert-grounding Ref-L4/ ref_l4.jsonl --check ref-l4

Input: JSON lines, MDETR json, refs(SPLIT).p with instances.json, gRefCOCO, TransVG .pth (no code in it is executed),
ODVG lines, D-cube and FG-OVD json, and the Flickr30k Entities and Ref-L4 folders (parquet, extra ref-l4).
Output: jsonl, mdetr, odvg, refs (a folder), transvg (.pth). A warning is printed for the google splits, whose training
images also occur in the test splits.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.core.words import EXPRESSION_LAYOUTS, EXPRESSION_SETS


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("source", type=Path, help="expression file or folder")
    parser.add_argument("target", type=Path, help="output file; a folder for refs")
    parser.add_argument("--to", choices=EXPRESSION_LAYOUTS, default="jsonl", help="output layout")
    parser.add_argument("--split", help="keep only this split")
    parser.add_argument("--instances", type=Path, help="instances.json of a refs file; default: same folder")
    parser.add_argument("--check", choices=EXPRESSION_SETS, help="check the counts against this full data set")


def run(args: argparse.Namespace) -> None:
    """Read, check, write and print the counts."""
    from smartclip_det.formats.expressions.counts import FULL_SETS, check_counts
    from smartclip_det.formats.expressions.loading import load_expressions, of_split
    from smartclip_det.formats.expressions.writing import write_layout
    from smartclip_det.protocols.stamp import file_hash, protocol_stamp, write_results

    expressions = load_expressions(args.source, instances=args.instances)
    if args.check:
        print(f"{args.check}: {check_counts(args.check, expressions)}")
        if FULL_SETS[args.check].shared_images:
            print(
                "warning: this partition splits by object, so training images occur in val and test. State this "
                "with any result."
            )
    if args.split:
        expressions = of_split(expressions, args.split, args.source)
    counts = write_layout(args.target, expressions, args.to)
    stamp = protocol_stamp("convert_grounding", source_sha256=file_hash(args.source), layout=args.to)
    report = args.target / "report.json" if args.to == "refs" else args.target.with_suffix(".report.json")
    write_results(report, stamp, counts)
    print(
        f"{counts['sentences']:,} sentences, {counts['without_target']:,} without a target, "
        f"{counts['many_targets']:,} with several: {args.target}"
    )
