"""Weights by name: what there is, what is on this machine, and whether it is what it should be.

    smartclip-det models                                   # all names: kind, size, licence, here or not
    smartclip-det models smartclip-b16                     # where it is from, hash, sizes, published numbers
    smartclip-det models clip-b16 --verify                 # download, check hash and sizes
    smartclip-det models clip-b16 --verify coco-5k=data/coco imagenet=data/imagenet/val

Every --encoder takes these names, and configs by towers.checkpoint=NAME; SmartCLIP.from_pretrained(NAME) in Python.
hf-hub:OWNER/NAME takes any repository of the Hugging Face hub that these towers can read, open_clip:MODEL/TAG any
weights of open_clip. Downloads go through huggingface_hub, with its cache, mirrors and switches: HF_HOME, HF_ENDPOINT,
HF_TOKEN, HF_HUB_OFFLINE=1. Exit code of --verify: 0 all as published; 1 some numbers not; 2 it could not be told.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from smartclip_det.cli.options import add_device, add_out, sets_of
from smartclip_det.core.errors import UserError

_FOOT = (
    "towers: read by this package; open_clip: built by open_clip. MB ?: told when it is fetched.",
    "Also hf-hub:OWNER/NAME, and open_clip:MODEL/TAG (--all lists those).",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add = parser.add_argument
    add("name", nargs="?", help="one name; without, all are listed")
    add("--all", action="store_true", help="also every name of open_clip's own table")
    add("--json", action="store_true", help="as JSON")
    add("--verify", nargs="*", metavar="SET=FOLDER", help="download and check; with sets, measure them")
    add("--partial", action="store_true", help="also parts of sets: shows that all runs, proves nothing")
    add("--names", help="imagenet: names of its folders, see smartclip-det classify")
    add("--workers", type=int, default=4, help="processes that read images")
    add_device(parser)
    add_out(parser, "work_dirs/verify_checkpoint.json", "JSON of the measured sets")


def run(args: argparse.Namespace) -> int:
    """List, tell or verify."""
    from smartclip_det.models.zoo.listing import weights_facts, weights_rows

    if args.verify is not None:
        return _verify(args)
    if args.name is None:
        rows = weights_rows(args.all)
        print(json.dumps(rows, indent=2) if args.json else _table(rows))
        return 0
    facts = weights_facts(args.name)
    print(json.dumps(facts, indent=2) if args.json else _told(facts))
    return 0


def _verify(args: argparse.Namespace) -> int:
    if args.name is None:
        raise UserError("Give the name that is verified: smartclip-det models NAME --verify.")
    from smartclip_det.models.zoo.listing import weights_facts

    weights_facts(args.name)
    from smartclip_det.apis.weights import VerifyWeightsOptions, verify_weights

    passed, facts, rows = verify_weights(
        VerifyWeightsOptions(
            args.name,
            sets_of(args.verify),
            partial=args.partial,
            names=args.names,
            workers=args.workers,
            device=args.device,
            out=args.out,
        )
    )
    if args.json:
        print(json.dumps({"passed": passed, **facts, "numbers": list(rows)}, indent=2))
    else:
        for key, value in facts.items():
            print(f"{key:16s} {value}")
        if rows:
            print(verdicts(rows))
        print("PASSED" if passed else f"NOT PASSED{' (parts prove nothing)' if args.partial else ''}")
    return 0 if passed else 1


def verdicts(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of published and measured numbers."""
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
    lines = [f"{'name':{width}s}  {'kind':9s}  {'MB':>7s}  {'licence':14s}  here"]
    for r in rows:
        size = "?" if r["megabytes"] is None else f"{r['megabytes']:,.0f}"
        lines.append(
            f"{r['name']:{width}s}  {r['kind']:9s}  {size:>7s}  {r['licence'] or 'not stated':14s}  "
            f"{'yes' if r['cached'] else '-'}"
        )
    return "\n".join([*lines, "", *_FOOT])


def _told(facts: Mapping[str, Any]) -> str:
    lines = []
    for key, value in facts.items():
        if key == "sources":
            for s in value:
                size = f", {s['megabytes']:,.0f} MB" if s["megabytes"] else ""
                lines.append(f"{'source':16s} {s['source']}{size}; sha256 {s['sha256'] or 'as the hub tells'}")
        elif key == "published":
            lines += [f"{'published':16s} {k}: {' / '.join(map(str, v))}" for k, v in value.items()]
        elif value is not None:
            lines.append(f"{key:16s} {value}")
    return "\n".join(lines)
