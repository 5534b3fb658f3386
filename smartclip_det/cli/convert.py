"""Convert tower checkpoints between layouts; the source's layout is recognised by content, and no code of it runs.

smartclip-det convert ViT-B-16.pt clip_b16.safetensors
smartclip-det convert clip_b16.safetensors longclip_init.pt --stretch
smartclip-det convert run_9.pt towers.safetensors --activation gelu --reading ema
smartclip-det convert clip_b16.safetensors folder --layout huggingface     # or open_clip
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add = parser.add_argument
    add("src", type=Path, help="checkpoint file, or a folder of Hugging Face or open_clip")
    add("dst", type=Path, help="file to write (.safetensors, .pt or .pth), or the folder for huggingface and open_clip")
    add("--layout", choices=["openai", "native", "huggingface", "open_clip"], default="openai", help="what is written")
    add("--activation", choices=["quick_gelu", "gelu"], help="where the source does not carry it")
    add("--reading", help="which weights of a source that holds several, e.g. ema")
    add("--stretch", action="store_true", help="stretch 77 text positions to 248 (Long-CLIP)")
    add("--drop-masks", action="store_true", help="leave out the mask network where the layout has no place for it")


def run(args: argparse.Namespace) -> None:
    """Read, write, read back, report."""
    from smartclip_det.apis.converting import ConvertOptions, convert

    print("\n".join(convert(ConvertOptions(**vars(args)))))
