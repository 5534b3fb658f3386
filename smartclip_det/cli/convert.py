"""Convert tower checkpoints between layouts. The source layout is detected from its content; no code in it is executed.

smartclip-det convert ViT-B-16.pt clip_b16.safetensors
smartclip-det convert clip_b16.safetensors longclip_init.pt --stretch
smartclip-det convert run_9.pt towers.safetensors --activation gelu --reading ema
smartclip-det convert clip_b16.safetensors folder --layout huggingface     # or open_clip
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add("src", type=Path, help="checkpoint file, or a Hugging Face or open_clip folder")
    add("dst", type=Path, help="output file (.safetensors, .pt or .pth), or folder for huggingface and open_clip")
    add("--layout", choices=["openai", "native", "huggingface", "open_clip"], default="openai", help="output layout")
    add("--activation", choices=["quick_gelu", "gelu"], help="activation function, if the source does not record it")
    add("--reading", help="which weights to read if the source has several, e.g. ema")
    add("--stretch", action="store_true", help="stretch 77 text positions to 248 (Long-CLIP)")
    add("--drop-masks", action="store_true", help="drop the mask network if the output layout has no place for it")


def run(args: argparse.Namespace) -> None:
    """Convert, read the result back and print a report."""
    from smartclip_det.apis.converting import ConvertOptions, convert

    print("\n".join(convert(ConvertOptions(**vars(args)))))
