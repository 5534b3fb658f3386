"""Convert tower checkpoints between layouts; the source's layout is recognised by content.

smartclip-det convert ViT-B-16.pt clip_b16.safetensors
smartclip-det convert clip_b16.safetensors longclip_init.pt --stretch
smartclip-det convert openclip_epoch_9.pt towers.safetensors --activation gelu
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.core.errors import UserError


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add = parser.add_argument
    add("src", type=Path, help="checkpoint file or Hugging Face folder")
    add("dst", type=Path, help="file to write: .safetensors, .pt or .pth")
    add("--layout", choices=["openai", "native"], default="openai", help="names of the tensors that are written")
    add("--activation", choices=["quick_gelu", "gelu"], help="where the source does not carry it")
    add("--stretch", action="store_true", help="stretch 77 text positions to 248 (Long-CLIP)")


def run(args: argparse.Namespace) -> None:
    """Read, report, write, and read back."""
    if args.dst.suffix not in (".safetensors", ".pt", ".pth"):
        raise UserError(f"{args.dst}: the ending must be .safetensors, .pt or .pth.")
    from smartclip_det.models.towers import SmartCLIP, read_checkpoint

    found = read_checkpoint(args.src, activation=args.activation)
    print(f"{args.src}: layout {found.layout}, {len(found.state)} tensors, hash {found.hash}")
    print(f"  {found.config}")
    print(f"  left out: {', '.join(found.unmatched) or 'nothing'}")
    model = SmartCLIP.from_checkpoint(args.src, activation=args.activation, stretch=args.stretch)
    model.save(args.dst, layout=args.layout)
    again = read_checkpoint(args.dst, activation=None if args.dst.suffix == ".safetensors" else model.config.activation)
    expected = SmartCLIP.from_checkpoint(args.dst, activation=again.config.activation).checkpoint_hash
    if again.hash != expected:
        raise UserError(f"{args.dst} does not read back to the same weights.")
    print(f"written: {args.dst}, {len(again.state)} tensors, hash {again.hash}")
    if args.dst.suffix != ".safetensors" and args.layout == "openai":
        print("note: bare .pt files have no place for activation, heads and mask_pad; .safetensors carries them.")
