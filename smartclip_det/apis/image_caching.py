"""Cache preprocessed images of an alignment config, with exactly the pixels that training would see."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATASETS
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from smartclip_det import register_alignment  # noqa: F401  (registers the data set)
from smartclip_det.core.errors import UserError
from smartclip_det.datasets.captions import CaptionDataset
from smartclip_det.datasets.image_cache import BROKEN, EMPTY, READY, ImageCache
from smartclip_det.engine.config import load_config
from smartclip_det.protocols.stamp import protocol_stamp, write_results


@dataclass(frozen=True)
class CacheOptions:
    """Options of the image cache.

    Attributes:
        config: alignment config.
        out: cache folder.
        dataloader: data loader whose data set is cached.
        workers: worker processes.
        retry_broken: retry images that could not be read.
        cfg_options: overrides of the config.
    """

    config: str
    out: Path
    dataloader: str = "train_dataloader"
    workers: int = 4
    retry_broken: bool = False
    cfg_options: Mapping[str, Any] | None = None


class Missing(Dataset):
    """Preprocessed images of the rows that a cache does not have yet."""

    def __init__(self, source: CaptionDataset, rows: np.ndarray) -> None:
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        """Number of missing rows."""
        return len(self.rows)

    def __getitem__(self, n: int) -> tuple[int, torch.Tensor | None, str]:
        """Return the row, the image ``[3, S, S]`` uint8 or None, and the error message if None."""
        row = int(self.rows[n])
        try:
            return row, self.source.read_image(row), ""
        except UserError as error:
            return row, None, str(error)


def _open(options: CacheOptions) -> tuple[CaptionDataset, ImageCache]:
    """Build the data set and open its cache."""
    config = load_config(options.config, options.cfg_options)
    if options.dataloader not in config:
        raise UserError(f"{options.config} has no {options.dataloader}.")
    given = dict(config[options.dataloader].dataset)
    images = {k: v for k, v in given.pop("images", {}).items() if k not in ("cache", "keep")}
    source = DATASETS.build(
        {"images": images, **{k: v for k, v in given.items() if k not in ("cache", "indices", "keep_images")}}
    )
    images = source.images
    cache = ImageCache(options.out, source.names(), images.size, images.fit, create=True, exact=source.exact)
    # An existing cache keeps the decoding mode it was created with.
    source.exact = cache.exact
    return source, cache


def cache_images(options: CacheOptions) -> dict[str, int]:
    """Fill the empty rows; pixels are flushed to disk before the marks that declare them ready.

    Returns:
        Counts: ``images``, ``ready``, ``broken``.

    Raises:
            UserError: for a config without that data loader, or a full disk.
    """
    source, cache = _open(options)
    if options.retry_broken:
        cache.rows[cache.rows == BROKEN] = EMPTY
    missing = np.flatnonzero(np.asarray(cache.rows) == EMPTY)
    need = len(missing) * 3 * source.images.size**2
    free = shutil.disk_usage(options.out).free
    if need > free:
        raise UserError(
            f"The cache needs another {need / 1e9:.1f} GB in {options.out}, but only {free / 1e9:.1f} GB are free."
        )
    loader = DataLoader(Missing(source, missing), batch_size=None, num_workers=options.workers)
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
    stamp = protocol_stamp("image cache", image_size=source.images.size, fit=source.images.fit, config=options.config)
    write_results(options.out / "report.json", stamp, counts, broken={str(k): v for k, v in reasons.items()})
    return counts


def verify_cache(options: CacheOptions, count: int) -> int:
    """Compare evenly spaced rows of the cache with freshly preprocessed images.

    Returns:
        Number of compared rows.

    Raises:
        UserError: for an empty cache, or a row that differs.
    """
    source, cache = _open(options)
    ready = np.flatnonzero(np.asarray(cache.rows) == READY)
    if not len(ready):
        raise UserError(
            f"The cache in {options.out} is empty. Run smartclip-det data cache-images without --verify first."
        )
    chosen = ready[np.linspace(0, len(ready) - 1, min(count, len(ready))).astype(int)]
    for row in tqdm(chosen, desc="verifying", unit="image"):
        stored = cache.get(int(row))
        assert stored is not None
        if not torch.equal(stored, source.read_image(int(row))):
            raise UserError(f"Row {row} of the cache in {options.out} differs from its image {source.names()[row]}.")
    return len(chosen)
