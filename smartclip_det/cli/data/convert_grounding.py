"""Referring expressions from any layout to any other, counts told, nothing lost on the way.

    smartclip-det data convert-grounding "refcoco/refs(unc).p" refcoco.jsonl --check refcoco-unc
    smartclip-det data convert-grounding "grefcoco/grefs(unc).json" grefcoco_train.jsonl --split train
    smartclip-det data convert-grounding refcoco.jsonl finetune_refcoco_val.json --to mdetr --split val
    smartclip-det data convert-grounding unc+_testA.pth testA.jsonl
    smartclip-det data convert-grounding flickr30k_entities/ flickr.jsonl
    smartclip-det data convert-grounding Ref-L4/ ref_l4.jsonl --check ref-l4

Read: JSON lines, MDETR json, refs(SPLIT).p with instances.json, gRefCOCO, TransVG .pth (nothing in it is run), ODVG
lines, D-cube and FG-OVD json, the folders of Flickr30k Entities and Ref-L4 (parquet, extra ref-l4).
Written: jsonl, mdetr, odvg, refs (a folder), transvg (.pth). The google splits share images of training with testing,
which is said.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.core.words import EXPRESSION_LAYOUTS, EXPRESSION_SETS


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("source", type=Path, help="file or folder of expressions")
    parser.add_argument("target", type=Path, help="file; for refs a folder")
    parser.add_argument("--to", choices=EXPRESSION_LAYOUTS, default="jsonl", help="layout that is written")
    parser.add_argument("--split", help="keep one split")
    parser.add_argument("--instances", type=Path, help="instances.json of a refs file; default: beside it")
    parser.add_argument("--check", choices=EXPRESSION_SETS, help="the full set that the source must be")


def run(args: argparse.Namespace) -> None:
    """Read, check, write, tell."""
    from smartclip_det.formats.expressions.counts import FULL_SETS, check_counts
    from smartclip_det.formats.expressions.loading import load_expressions, of_split
    from smartclip_det.formats.expressions.writing import write_layout
    from smartclip_det.protocols.stamp import file_hash, protocol_stamp, write_results

    expressions = load_expressions(args.source, instances=args.instances)
    if args.check:
        print(f"{args.check}: {check_counts(args.check, expressions)}")
        if FULL_SETS[args.check].shared_images:
            print(
                "warning: this partition is by object: images of training are in val and test. Say so beside numbers."
            )
    if args.split:
        expressions = of_split(expressions, args.split, args.source)
    counts = write_layout(args.target, expressions, args.to)
    stamp = protocol_stamp("convert_grounding", source_sha256=file_hash(args.source), layout=args.to)
    beside = args.target / "report.json" if args.to == "refs" else args.target.with_suffix(".report.json")
    write_results(beside, stamp, counts)
    print(
        f"{counts['sentences']:,} sentences, {counts['without_target']:,} without a target, "
        f"{counts['many_targets']:,} with several: {args.target}"
    )
