"""Disk cache of prepared images: exactly the bytes that the transform returns, in one memory-mapped file.

Shape letters: N images, S side of the square in pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smartclip_det.core.errors import UserError
from smartclip_det.formats.json_files import read_json
from smartclip_det.utils.files import write_whole

#: State of a row: empty, an image, or an unreadable image.
EMPTY, READY, BROKEN = 0, 1, 2


def names_digest(names: Sequence[str]) -> str:
    """Digest that identifies the images of a cache and their order."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + b"\0")
    return digest.hexdigest()[:16]


class ImageCache:
    """A folder with ``images.u8`` ``[N, 3, S, S]``, ``rows.u8`` ``[N]`` and ``cache.json``."""

    def __init__(
        self,
        folder: str | Path,
        names: Sequence[str],
        image_size: int,
        fit: str,
        *,
        create: bool = False,
        exact: bool = True,
    ) -> None:
        """Open or create a cache.

        Args:
            folder: cache folder.
            names: image names, in order.
            image_size: S.
            fit: how images are made square.
            create: create the files if they do not exist.
            exact: when opening, accept only images decoded at full size; when creating, mark the cache as such. The
                attribute ``exact`` says what the cache contains.

        Raises:
            UserError: if there is no cache, or it was made for other images or another transform.
        """
        self.folder = Path(folder)
        facts: dict[str, Any] = {
            "images": len(names),
            "names": names_digest(names),
            "image_size": image_size,
            "fit": fit,
        }
        described = self.folder / "cache.json"
        if not described.is_file():
            if not create:
                raise UserError(f"No image cache in {self.folder}; create it with tools/data/cache_images.py.")
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, shape in (("rows.u8", (len(names),)), ("images.u8", (len(names), 3, image_size, image_size))):
                # Sparse files: unfilled parts take no disk space.
                with (self.folder / name).open("wb") as handle:
                    handle.truncate(int(np.prod(shape, dtype=np.int64)))
            write_whole(described, json.dumps({**facts, "decode": "exact" if exact else "reduced"}, indent=2))
        stored = read_json(described, "cache description")
        other = [f"{k} {stored.get(k)} (expected: {v})" for k, v in facts.items() if stored.get(k) != v]
        # Caches made before reduced decoding was added do not have this key.
        self.exact = stored.get("decode", "exact") == "exact"
        if exact and not self.exact:
            other.append("decode reduced, for training only (expected: exact)")
        if other:
            raise UserError(f"The image cache in {self.folder} does not match: {'; '.join(other)}.")
        mode = "r+" if create else "r"
        self._pending: dict[int, int] = {}
        self.rows = np.memmap(self.folder / "rows.u8", np.uint8, mode, shape=(len(names),))
        self._images = np.memmap(
            self.folder / "images.u8", np.uint8, mode, shape=(len(names), 3, image_size, image_size)
        )

    def get(self, index: int) -> Tensor | None:
        """``[3, S, S]`` uint8, or None if the row is empty.

        Raises:
            UserError: for an image that was unreadable when the cache was made.
        """
        if self.rows[index] == BROKEN:
            raise UserError(f"Image {index} could not be read when the cache in {self.folder} was made.")
        return torch.from_numpy(self._images[index].copy()) if self.rows[index] == READY else None

    def put(self, index: int, image: Tensor | None) -> None:
        """Store a row, None for an unreadable image; readers see it after :meth:`flush`."""
        if image is not None:
            self._images[index] = image.numpy()
        self._pending[index] = READY if image is not None else BROKEN

    def flush(self) -> None:
        """Write pixels to disk, then their flags, so that a crash never leaves a flag without its image."""
        self._images.flush()
        for index, flag in self._pending.items():
            self.rows[index] = flag
        self._pending.clear()
        self.rows.flush()
