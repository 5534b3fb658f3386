"""Encode a vocabulary into a text bank file, using the disk cache.

smartclip-det encode-texts --vocabulary ov_coco_65 --templates vild_63 --encoder smartclip_b16.pt --out b.safetensors
smartclip-det encode-texts --vocabulary names.txt --arch SmartCLIP-tiny --out bank.safetensors
smartclip-det encode-texts --vocabulary names.txt --encoder smartclip_b16.pt --out names.npz

A .npz holds one row per name and feeds ONNX files exported with --bank-input.
"""

from __future__ import annotations

import argparse
import json
import time

from smartclip_det.cli.options import Old, add_device, add_encoder, add_out, encoder_source
from smartclip_det.core.words import TEMPLATE_ORDERS, TEMPLATE_SETS

OLD = (Old("--checkpoint", "--encoder"), Old("--names", "--vocabulary"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add("--vocabulary", required=True, help="class names: a known vocabulary (ov_coco_65, coco_80, ...), .txt or .json")
    add("--seen", help="names seen in training, in the same formats")
    add("--templates", default="photo", choices=TEMPLATE_SETS, help="prompt templates")
    add(
        "--template-order", default="average_state", choices=TEMPLATE_ORDERS, help="what is averaged over the templates"
    )
    add_encoder(parser)
    add_out(parser, None, "output bank, .safetensors or .npz; facts go to a .json of the same name", required=True)
    add_device(parser)
    add("--batch-size", type=int, default=256, help="texts per forward pass")
    add("--no-cache", action="store_true", help="do not use the disk cache")


def run(args: argparse.Namespace) -> None:
    """Encode, save and print the facts."""
    from smartclip_det.models.towers.source import load_towers
    from smartclip_det.models.vocabulary import build_bank, default_cache_dir, resolve_names
    from smartclip_det.protocols.stamp import protocol_stamp, write_results
    from smartclip_det.utils.devices import resolve_device

    names = resolve_names(args.vocabulary)
    encoder = load_towers(encoder_source(args)).to(resolve_device(args.device))
    start = time.perf_counter()
    bank = build_bank(
        encoder,
        names,
        templates=args.templates,
        template_order=args.template_order,
        seen=resolve_names(args.seen) if args.seen else None,
        batch_size=args.batch_size,
        cache_dir=None if args.no_cache else default_cache_dir(),
    )
    seconds = time.perf_counter() - start
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.out.suffix == ".npz":
        from smartclip_det.apis.exporting.graph_bank import write_bank
        from smartclip_det.core.scoring_policy import ScoringPolicy

        write_bank(bank, ScoringPolicy(), args.out)
    else:
        bank.save(args.out)
    facts = {
        "classes": len(bank),
        "rows": len(bank.texts),
        "dim": bank.dim,
        "mask_density": float(bank.masks.mean()),
        "seconds": seconds,
    }
    print(json.dumps(facts))
    out = write_results(args.out.with_suffix(".json"), protocol_stamp("encode_texts", **bank.provenance), facts)
    print(f"written: {args.out}, {out}")
