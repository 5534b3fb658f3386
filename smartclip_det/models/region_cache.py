"""Disk cache of region vectors, so that several runs on a benchmark encode each image once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from smartclip_det.core.errors import UserError
from smartclip_det.models.regions import BLUR, RegionEncoder
from smartclip_det.models.towers.encoder import Encoder
from smartclip_det.utils.safe_load import safe_safetensors_load


class CachedRegionEncoder(RegionEncoder):
    """A :class:`RegionEncoder` that caches its results, one file per image, boxes and view.

    The key covers everything that determines the vectors: pixels, boxes, masks, towers and settings. Files are written
    atomically, so several processes may share a folder.

    Args:
        towers: the encoder, on any device.
        folder: cache folder; created if missing.
        options: passed to :class:`RegionEncoder`.

    Raises:
        UserError: if the folder cannot be created.
    """

    def __init__(self, towers: Encoder, folder: str | Path, **options: Any) -> None:
        super().__init__(towers, **options)
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"The cache folder {folder} cannot be created ({error}).") from error
        settings = {
            **towers.provenance(),
            "side": self.side,
            "dense_size": self.dense_size,
            "fit": self.fit,
            "crop_context": self.crop_context,
            "blur": BLUR,
        }
        self._settings = json.dumps(settings, sort_keys=True)
        self._hashed: tuple[Image.Image, bytes] | None = None

    def vectors(
        self,
        image: Image.Image,
        boxes: Sequence[Sequence[float]],
        view: str,
        masks: np.ndarray | None = None,
        dense_mode: str | None = None,
        pooling: str = "own",
    ) -> Tensor:
        """Like :meth:`RegionEncoder.vectors`, from the cache if possible."""
        if not len(boxes):
            return super().vectors(image, boxes, view, masks, dense_mode, pooling)
        mode = (dense_mode or self.dense_mode) if view in ("dense", "mask") else ""
        if mode and pooling != "own":
            mode += f" {pooling}"
        path = self.folder / f"{self._key(image, boxes, masks, view, mode)}.safetensors"
        if path.is_file():
            return safe_safetensors_load(path)[0]["vectors"]
        vectors = super().vectors(image, boxes, view, masks, dense_mode, pooling)
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file({"vectors": vectors.contiguous()}, str(part))
        os.replace(part, path)
        return vectors

    def _key(
        self, image: Image.Image, boxes: Sequence[Sequence[float]], masks: np.ndarray | None, view: str, mode: str
    ) -> str:
        if self._hashed is None or self._hashed[0] is not image:
            self._hashed = image, hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).digest()
        digest = hashlib.sha256(f"{self._settings} {view} {mode} ".encode() + self._hashed[1])
        digest.update(np.asarray(boxes, dtype=np.float64).tobytes())
        if masks is not None:
            digest.update(np.packbits(masks).tobytes())
        return digest.hexdigest()
