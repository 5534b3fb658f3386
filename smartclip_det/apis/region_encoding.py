"""Encoders and region views, as options of runs over files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.models.region_cache import CachedRegionEncoder
from smartclip_det.models.regions import RegionEncoder
from smartclip_det.models.towers.source import load_encoder
from smartclip_det.utils.devices import resolve_device


@dataclass(frozen=True)
class RegionEncoding:
    """Encoders of the regions of an image, and their views.

    Attributes:
        towers: config of each encoder, see :func:`load_encoder`; several form an ensemble.
        device: see :func:`resolve_device`.
        views: region views (see :mod:`smartclip_det.models.regions`); their cosines are averaged.
        dense_mode: mode of the last block for the dense map.
        dense_size: side of the dense input in pixels; 0: the tower's input size.
        crop_context: crop side relative to the longer box side.
        cache: folder that caches region vectors for later runs; None: no cache.
    """

    towers: Sequence[Mapping[str, Any]]
    device: str = "auto"
    views: Sequence[str] = ("dense",)
    dense_mode: str = "value"
    dense_size: int = 0
    crop_context: float = 1.2
    cache: Path | None = None

    def __post_init__(self) -> None:
        if isinstance(self.towers, str | Mapping) or not all(isinstance(t, Mapping) for t in self.towers):
            raise UserError(f"towers must be a list of encoder configs, [{{'checkpoint': FILE}}]; got {self.towers!r}.")
        if not self.towers:
            raise UserError("No encoder: towers is empty. Give at least one, [{'checkpoint': FILE}].")

    def load(self) -> list[RegionEncoder]:
        """Load each encoder on the device.

        Raises:
            UserError: for missing or unreadable checkpoints, unknown modes, and devices that are not available.
        """
        settings: dict[str, Any] = {
            "dense_size": self.dense_size,
            "dense_mode": self.dense_mode,
            "crop_context": self.crop_context,
        }
        towers = [load_encoder(t, str(resolve_device(self.device))) for t in self.towers]
        if self.cache is None:
            return [RegionEncoder(t, **settings) for t in towers]
        return [CachedRegionEncoder(t, self.cache, **settings) for t in towers]
