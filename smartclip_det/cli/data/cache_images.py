r"""Preprocess the images of an alignment config once, into one file with exactly the pixels that training would see.

    smartclip-det data cache-images configs/smartclip_align/smartclip-b16_1024-3e_sharegpt4v.py --out cache/ \
        --cfg-options data_root=/data/sharegpt4v/
    smartclip-det data cache-images CONFIG --out cache/ --verify 1000        # compare rows with freshly decoded images
    smartclip-det train CONFIG --cfg-options train_dataloader.dataset.images.cache=cache/

An interrupted run resumes. A row takes 3 S^2 bytes (147 KiB at 224 px; 188 GB for ShareGPT4V).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import add_cfg_options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("config", help="alignment config")
    parser.add_argument("--out", type=Path, required=True, help="cache folder")
    parser.add_argument(
        "--dataloader", default="train_dataloader", help="data loader whose data set is cached, e.g. test_dataloader"
    )
    parser.add_argument("--workers", type=int, default=4, help="worker processes")
    parser.add_argument(
        "--verify", type=int, default=0, help="compare this many rows with freshly decoded images, then exit"
    )
    parser.add_argument("--retry-broken", action="store_true", help="retry images that could not be read")
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    """Add the missing rows, or verify existing ones."""
    from smartclip_det.apis.image_caching import CacheOptions, cache_images, verify_cache

    options = CacheOptions(**{k: v for k, v in vars(args).items() if k != "verify"})
    if args.verify:
        print(f"{verify_cache(options, args.verify)} rows match their images byte for byte.")
        return
    counts = cache_images(options)
    print(f"{counts['ready']} of {counts['images']} images ready, {counts['broken']} could not be read: {args.out}")
