#!/usr/bin/env python
"""Encode a vocabulary into a text bank file, through the disk cache.

python tools/encode_texts.py --names ov_coco_65 --templates vild_63 --checkpoint smartclip_b16.pt --out bank.safetensors
python tools/encode_texts.py --names names.txt --arch SmartCLIP-tiny --out bank.safetensors
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from smartclip_det.core.prompts import TEMPLATE_SETS
from smartclip_det.core.scoring_policy import TEMPLATE_ORDERS
from smartclip_det.models.towers.source import load_towers
from smartclip_det.models.vocabulary import build_bank, default_cache_dir, resolve_names
from smartclip_det.protocols.stamp import protocol_stamp, write_results
from smartclip_det.utils.cli import run_tool


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", required=True, help="a known vocabulary (ov_coco_65, coco_80, ...), .txt or .json")
    parser.add_argument("--seen", help="names that training may use, in the same forms")
    parser.add_argument("--templates", default="photo", choices=TEMPLATE_SETS)
    parser.add_argument("--template-order", default="average_state", choices=TEMPLATE_ORDERS)
    towers = parser.add_mutually_exclusive_group(required=True)
    towers.add_argument("--checkpoint", help="towers")
    towers.add_argument("--arch", help="a named architecture with random weights")
    parser.add_argument("--out", type=Path, required=True, help="bank to write, .safetensors")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=256, help="texts per forward pass")
    parser.add_argument("--no-cache", action="store_true", help="do not read or fill the disk cache")
    return parser.parse_args()


def main() -> None:
    """Encode, save, say what was done."""
    args = parse_args()
    names = resolve_names(args.names)
    encoder = load_towers({"checkpoint": args.checkpoint, "arch": args.arch}).to(args.device)
    start = time.perf_counter()
    bank = build_bank(
        encoder, names, templates=args.templates, template_order=args.template_order,
        seen=resolve_names(args.seen) if args.seen else None, batch_size=args.batch_size,
        cache_dir=None if args.no_cache else default_cache_dir(),
    )  # fmt: skip
    seconds = time.perf_counter() - start
    args.out.parent.mkdir(parents=True, exist_ok=True)
    bank.save(args.out)
    facts = {"classes": len(bank), "rows": len(bank.texts), "dim": bank.dim, "mask_density": float(bank.masks.mean()),
             "seconds": seconds}  # fmt: skip
    print(json.dumps(facts))
    out = write_results(args.out.with_suffix(".json"), protocol_stamp("encode_texts", **bank.provenance), facts)
    print(f"written: {args.out}, {out}")


if __name__ == "__main__":
    run_tool(main)
