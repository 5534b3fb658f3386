"""List, inspect and verify public weights by name.

    smartclip-det models                                   # all names: kind, size, licence, cached or not
    smartclip-det models smartclip-b16                     # source, hash, sizes, published numbers
    smartclip-det models clip-b16 --verify                 # download, check hash and sizes
    smartclip-det models clip-b16 --verify coco-5k=data/coco imagenet=data/imagenet/val

Every --encoder option accepts these names, as do configs (towers.checkpoint=NAME) and SmartCLIP.from_pretrained(NAME)
in Python. hf-hub:OWNER/NAME loads any Hugging Face repository that these towers can read, open_clip:MODEL/TAG any
weights of open_clip. Downloads use huggingface_hub with its cache, mirrors and environment variables: HF_HOME,
HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE=1. Exit code of --verify: 0 all as published; 1 some numbers differ; 2
verification failed to run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from smartclip_det.cli.options import add_out, add_published_sets, filled, sets_of
from smartclip_det.core.errors import UserError

_FOOT = (
    "towers: loaded by this package; open_clip: built by open_clip. MB ?: size unknown until downloaded.",
    "Also hf-hub:OWNER/NAME, and open_clip:MODEL/TAG (--all lists those).",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add("name", nargs="?", help="a name; without one, all are listed")
    add("--all", action="store_true", help="also list all names known to open_clip")
    add("--json", action="store_true", help="print JSON")
    add(
        "--verify",
        nargs="*",
        metavar="SET=FOLDER",
        help="download and check the weights; with SET=FOLDER, also measure these sets",
    )
    add_published_sets(parser)
    add_out(parser, "work_dirs/verify_checkpoint.json", "JSON with the measured sets")


def run(args: argparse.Namespace) -> int:
    """List the weights, show one entry, or verify it."""
    from smartclip_det.models.zoo.listing import weights_facts, weights_rows

    if args.verify is not None:
        return _verify(args)
    if args.name is None:
        rows = weights_rows(args.all)
        print(json.dumps(rows, indent=2) if args.json else _table(rows))
        return 0
    facts = weights_facts(args.name)
    print(json.dumps(facts, indent=2) if args.json else _facts_text(facts))
    return 0


def _verify(args: argparse.Namespace) -> int:
    if args.name is None:
        raise UserError("--verify needs a name: smartclip-det models NAME --verify.")
    from smartclip_det.models.zoo.listing import weights_facts

    weights_facts(args.name)
    from smartclip_det.apis.weights import VerifyWeightsOptions, verify_weights

    passed, facts, rows = verify_weights(filled(VerifyWeightsOptions, args, sets=sets_of(args.verify)))
    if args.json:
        print(json.dumps({"passed": passed, **facts, "numbers": list(rows)}, indent=2))
    else:
        for key, value in facts.items():
            print(f"{key:16s} {value}")
        if rows:
            print(verdicts(rows))
        print("PASSED" if passed else f"NOT PASSED{' (incomplete sets)' if args.partial else ''}")
    return 0 if passed else 1


def verdicts(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format a table of published and measured numbers."""
    head = f"{'set':22s} {'metric':14s} {'published':>9s} {'measured':>9s} {'tolerance':>9s}"
    return "\n".join(
        [
            head,
            *(
                f"{r['set']:22s} {r['metric']:14s} {r['published']:9.2f} {r['measured']:9.2f} {r['tolerance']:9.2f}  "
                f"{'pass' if r['passed'] else 'FAIL'}"
                for r in rows
            ),
        ]
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    width = max(len(r["name"]) for r in rows)
    lines = [f"{'name':{width}s}  {'kind':9s}  {'MB':>7s}  {'licence':14s}  cached"]
    for r in rows:
        size = "?" if r["megabytes"] is None else f"{r['megabytes']:,.0f}"
        lines.append(
            f"{r['name']:{width}s}  {r['kind']:9s}  {size:>7s}  {r['licence'] or 'not stated':14s}  "
            f"{'yes' if r['cached'] else '-'}"
        )
    return "\n".join([*lines, "", *_FOOT])


def _facts_text(facts: Mapping[str, Any]) -> str:
    lines = []
    for key, value in facts.items():
        if key == "sources":
            for s in value:
                size = f", {s['megabytes']:,.0f} MB" if s["megabytes"] else ""
                lines.append(f"{'source':16s} {s['source']}{size}; sha256 {s['sha256'] or 'from the hub'}")
        elif key == "published":
            lines += [f"{'published':16s} {k}: {' / '.join(map(str, v))}" for k, v in value.items()]
        elif value is not None:
            lines.append(f"{key:16s} {value}")
    return "\n".join(lines)
