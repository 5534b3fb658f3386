"""Prepared images on disk: exactly the bytes that the transform gives, in one file that is read by place.

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

#: What a row holds: nothing yet, an image, or one that could not be read.
EMPTY, READY, BROKEN = 0, 1, 2


def names_digest(names: Sequence[str]) -> str:
    """What says that a cache was made for these images, in this order."""
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
        """Open, or create.

        Args:
            folder: of the cache.
            names: the images, in order.
            image_size: S.
            fit: how images become squares.
            create: make the files where there are none.
            exact: only images that were decoded whole will do; of a cache that is made, that they are. Its attribute
                ``exact`` says what it holds.

        Raises:
            UserError: no cache there, or one that was made for other images or another transform.
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
                raise UserError(f"No image cache in {self.folder}; tools/data/cache_images.py makes one.")
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, shape in (("rows.u8", (len(names),)), ("images.u8", (len(names), 3, image_size, image_size))):
                # Sparse: what is not filled takes no place on disk.
                with (self.folder / name).open("wb") as handle:
                    handle.truncate(int(np.prod(shape, dtype=np.int64)))
            write_whole(described, json.dumps({**facts, "decode": "exact" if exact else "reduced"}, indent=2))
        found = read_json(described, "cache description")
        other = [f"{k} {found.get(k)} (asked for: {v})" for k, v in facts.items() if found.get(k) != v]
        # Caches of before reduced decoding do not say it.
        self.exact = found.get("decode", "exact") == "exact"
        if exact and not self.exact:
            other.append("decode reduced, for training (asked for: exact)")
        if other:
            raise UserError(f"The image cache in {self.folder} is another one: {'; '.join(other)}.")
        mode = "r+" if create else "r"
        self._pending: dict[int, int] = {}
        self.rows = np.memmap(self.folder / "rows.u8", np.uint8, mode, shape=(len(names),))
        self._images = np.memmap(
            self.folder / "images.u8", np.uint8, mode, shape=(len(names), 3, image_size, image_size)
        )

    def get(self, index: int) -> Tensor | None:
        """``[3, S, S]`` uint8, or None where the row is empty.

        Raises:
            UserError: for an image that could not be read when the cache was made.
        """
        if self.rows[index] == BROKEN:
            raise UserError(f"Image {index} could not be read when the cache in {self.folder} was made.")
        return torch.from_numpy(self._images[index].copy()) if self.rows[index] == READY else None

    def put(self, index: int, image: Tensor | None) -> None:
        """Store a row, None for an image that cannot be read; readers see it after :meth:`flush`."""
        if image is not None:
            self._images[index] = image.numpy()
        self._pending[index] = READY if image is not None else BROKEN

    def flush(self) -> None:
        """Pixels to disk, and only then their flags: a machine that dies leaves no flag without its image."""
        self._images.flush()
        for index, flag in self._pending.items():
            self.rows[index] = flag
        self._pending.clear()
        self.rows.flush()
