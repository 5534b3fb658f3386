#!/usr/bin/env python
"""Prepare the images of an alignment config once: exactly the pixels that training would see, in one file.

    python tools/data/cache_images.py configs/smartclip_align/smartclip-b16_1024-3e_sharegpt4v.py --out cache/ \
        --cfg-options data_root=/data/sharegpt4v/
    python tools/data/cache_images.py CONFIG --out cache/ --verify 1000        # compare rows with fresh images
    python tools/train.py CONFIG --cfg-options train_dataloader.dataset.cache=cache/

Stopped, it goes on where it was. A row takes 3 S^2 bytes (147 KiB at 224 px; 188 GB for ShareGPT4V).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
from mmengine.config import DictAction
from mmengine.registry import DATASETS
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from smartclip_det import alignment_parts  # noqa: F401  (registers the data set)
from smartclip_det.core.errors import UserError
from smartclip_det.datasets.captions import CaptionDataset
from smartclip_det.datasets.image_cache import BROKEN, EMPTY, READY, ImageCache
from smartclip_det.engine.config import load_config
from smartclip_det.protocols.stamp import protocol_stamp, write_results
from smartclip_det.utils.cli import run_tool


class Missing(Dataset):
    """Prepared images of the rows that a cache lacks."""

    def __init__(self, source: CaptionDataset, rows: np.ndarray) -> None:
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        """Rows to fill."""
        return len(self.rows)

    def __getitem__(self, n: int) -> tuple[int, torch.Tensor | None, str]:
        """Row, ``[3, S, S]`` uint8 or None, and why there is none."""
        row = int(self.rows[n])
        try:
            return row, self.source.read_image(row), ""
        except UserError as error:
            return row, None, str(error)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="alignment config")
    parser.add_argument("--out", type=Path, required=True, help="folder of the cache")
    parser.add_argument("--dataloader", default="train_dataloader", help="whose data set; test_dataloader for tests")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--verify", type=int, default=0, help="compare so many rows with fresh images, and stop")
    parser.add_argument("--retry-broken", action="store_true", help="try again what could not be read")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="overrides of the config")
    return parser.parse_args()


def main() -> None:
    """Fill what is missing, or verify."""
    args = parse_args()
    config = load_config(args.config, args.cfg_options)
    if args.dataloader not in config:
        raise UserError(f"{args.config} has no {args.dataloader}.")
    options = {k: v for k, v in config[args.dataloader].dataset.items() if k not in ("cache", "indices", "keep_images")}
    source = DATASETS.build(options)
    cache = ImageCache(args.out, source.names(), source.image_size, source.fit, create=True, exact=source.exact)
    # What a cache has begun with, it goes on with.
    source.exact = cache.exact
    if args.verify:
        verify(source, cache, args.verify, args.out)
        return
    if args.retry_broken:
        cache.rows[cache.rows == BROKEN] = EMPTY
    fill(source, cache, args)


def fill(source: CaptionDataset, cache: ImageCache, args: argparse.Namespace) -> None:
    """Prepare the empty rows; pixels reach the disk before the marks that say they did."""
    missing = np.flatnonzero(np.asarray(cache.rows) == EMPTY)
    need = len(missing) * 3 * source.image_size**2
    free = shutil.disk_usage(args.out).free
    if need > free:
        raise UserError(f"The cache needs {need / 1e9:.1f} GB more in {args.out}; {free / 1e9:.1f} GB are free.")
    loader = DataLoader(Missing(source, missing), batch_size=None, num_workers=args.workers)
    reasons: dict[int, str] = {}
    for n, (row, image, reason) in enumerate(tqdm(loader, desc="caching", unit="image", total=len(missing)), 1):
        cache.put(row, image)
        if image is None:
            reasons[row] = reason
        if n % 5000 == 0:
            cache.flush()
    cache.flush()
    rows = np.asarray(cache.rows)
    counts = {"images": len(rows), "ready": int((rows == READY).sum()), "broken": int((rows == BROKEN).sum())}
    stamp = protocol_stamp("image cache", image_size=source.image_size, fit=source.fit, config=args.config)
    write_results(args.out / "report.json", stamp, counts, broken={str(k): v for k, v in reasons.items()})
    print(f"{counts['ready']} of {counts['images']} images ready, {counts['broken']} could not be read: {args.out}")


def verify(source: CaptionDataset, cache: ImageCache, count: int, out: Path) -> None:
    """Compare rows spread over the cache with images prepared now; any difference is an error."""
    ready = np.flatnonzero(np.asarray(cache.rows) == READY)
    if not len(ready):
        raise UserError(f"The cache in {out} has no image yet; fill it first.")
    chosen = ready[np.linspace(0, len(ready) - 1, min(count, len(ready))).astype(int)]
    for row in tqdm(chosen, desc="verifying", unit="image"):
        stored = cache.get(int(row))
        assert stored is not None
        if not torch.equal(stored, source.read_image(int(row))):
            raise UserError(f"Row {row} of the cache in {out} differs from its image {source.names()[row]}.")
    print(f"{len(chosen)} rows equal their images byte by byte.")


if __name__ == "__main__":
    run_tool(main)
