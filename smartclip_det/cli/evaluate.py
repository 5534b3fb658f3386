"""Score saved predictions, or compare two prediction files.

    smartclip-det evaluate coco --ann instances_val2017.json --pred results.json --out metrics.json
    smartclip-det evaluate ov-coco --ann instances_val2017_all_2.json --pred results.json
    smartclip-det evaluate lvis --ann lvis_v1_val.json --pred results.json --backend reference
    smartclip-det evaluate ov-coco --ann val.json --pred results.json.rank0.partial.jsonl --images predicted
    smartclip-det evaluate voc --ann VOC2007/Annotations --pred results.json
    smartclip-det evaluate refcoco --ann "refcoco/refs(unc).p" --split testA --pred boxes.jsonl
    smartclip-det evaluate ov-coco --ann val.json --compare a.json b.json
    smartclip-det evaluate grefcoco --ann "grefs(unc).json" --split val --pred boxes.jsonl
    smartclip-det evaluate retrieval --ann captions.json --pred vectors.safetensors

Metrics are printed and written as JSON, unrounded, together with the protocol they were measured with.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import Old
from smartclip_det.core.errors import UserError
from smartclip_det.protocols.options import OPTIONS, Options, add_protocol_options, given_options
from smartclip_det.utils.cli import format_metrics

OLD = (Old("--score-threshold", "--threshold"),)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("protocol", choices=tuple(OPTIONS), help="evaluation protocol")
    parser.add_argument("--ann", type=Path, required=True, help="annotation file, or VOC XML folder")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--pred", type=Path, help="prediction file (as written by smartclip-det test --out)")
    what.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="compare two files by paired bootstrap")
    parser.add_argument("--out", type=Path, help="output JSON; default: next to the predictions")
    parser.add_argument("--per-class", action="store_true", help="print per-class results (always in the JSON)")
    add_protocol_options(parser)
    parser.add_argument("--resamples", type=int, default=1000, help="compare: bootstrap resamples")
    parser.add_argument("--seed", type=int, default=0, help="compare: bootstrap seed")


def run(args: argparse.Namespace) -> None:
    """Score one prediction file, or compare two."""
    options = given_options(args.protocol, args)
    from smartclip_det.protocols.registry import PROTOCOLS
    from smartclip_det.protocols.stamp import write_results

    if args.compare:
        compare_files(args, options)
        return
    result = PROTOCOLS[args.protocol].evaluate(args.ann, args.pred, options)
    print(f"{args.protocol} ({', '.join(f'{k} {v}' for k, v in result.counts.items())})")
    print(format_metrics(result.metrics))
    if args.per_class:
        print_classes(result.per_class)
    if result.counts.get("unknown_category"):
        print(f"note: {result.counts['unknown_category']} predictions have an unknown category.")
    if result.counts.get("difficult") and options.difficult == "count":
        print(
            f"note: {result.counts['difficult']} difficult objects are counted; the VOC devkit ignores them "
            "(--difficult ignore)."
        )
    out = args.out or args.pred.with_suffix(f".{args.protocol}.json")
    write_results(out, result.protocol, result.metrics, counts=result.counts, per_class=result.per_class)
    print(f"written: {out}")


def print_classes(per_class: dict[str, float | None]) -> None:
    """Print the AP of each class, worst first; classes without ground truth come last."""
    scored = sorted((v, n) for n, v in per_class.items() if v is not None)
    for value, name in scored:
        print(f"{value:7.4f}  {name}")
    absent = [n for n, v in per_class.items() if v is None]
    if absent:
        print(f"no ground truth: {', '.join(absent)}")


def compare_files(args: argparse.Namespace, options: Options) -> None:
    """Compare two prediction files by paired bootstrap; print and write the result."""
    from smartclip_det.protocols.registry import PROTOCOLS
    from smartclip_det.protocols.stamp import write_results

    a, b = args.compare
    if args.resamples < 1:
        raise UserError("--resamples must be at least 1.")
    stamp, outcome = PROTOCOLS[args.protocol].compare(args.ann, a, b, options, resamples=args.resamples, seed=args.seed)
    print(f"A = {a}\nB = {b}\n{'metric':12s} {'A':>9s} {'B':>9s} {'B - A':>9s}  95 % interval        p")
    for name, r in outcome.items():
        interval = f"[{r['low']:+.4f}, {r['high']:+.4f}]"
        print(f"{name:12s} {r['a']:9.4f} {r['b']:9.4f} {r['difference']:+9.4f}  {interval}  {r['p']:.4f}")
    out = args.out or b.with_suffix(f".compare-{a.stem}.json")
    write_results(out, stamp, outcome)
    print(f"written: {out}")
