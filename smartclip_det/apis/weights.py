"""Verify downloaded weights: hash, sizes, and published numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.models.zoo import fetch


@dataclass(frozen=True)
class VerifyWeightsOptions:
    """Options of weight verification.

    Attributes:
        name: name of the weights; downloaded if not cached.
        sets: set name -> folder, for sets with published numbers; empty: check file and sizes only.
        partial: see :class:`VerifyOptions`.
        names: imagenet: class names of the folders.
        workers: data loader workers.
        device: see :func:`resolve_device`.
        out: JSON output with the measured sets.
    """

    name: str
    sets: Mapping[str, Path] = field(default_factory=dict)
    partial: bool = False
    names: str | None = None
    workers: int = 4
    device: str = "auto"
    out: Path = Path("work_dirs/verify_checkpoint.json")


def verify_weights(options: VerifyWeightsOptions) -> tuple[bool, dict[str, Any], Sequence[Mapping[str, Any]]]:
    """Download, check the hash, load, compare with the registry, and measure the given sets.

    Returns:
        Whether all checks passed, the facts, and one row per measured published number.

    Raises:
        UserError: for a failed download, a wrong hash, a file that does not match its registry entry, and sets that
            cannot be measured.
    """
    from smartclip_det.apis.checking import VerifyOptions, verify_checkpoint
    from smartclip_det.models.towers.source import load_encoder

    download = fetch(options.name)
    towers = load_encoder({"checkpoint": options.name})
    config, weights = towers.config, download.weights
    facts = {
        "path": str(download.path),
        "sha256": download.sha256,
        "checkpoint_hash": towers.checkpoint_hash,
        "image_size": config.image_size,
        "context_length": config.context_length,
        "activation": getattr(config, "activation", None),
    }
    expected = {k: getattr(weights, k) for k in ("image_size", "context_length", "activation")}
    wrong = [f"{k} {facts[k]}, but {v} in the registry" for k, v in expected.items() if v is not None and facts[k] != v]
    if wrong:
        raise UserError(f"{download.path} does not match the registry entry of {options.name}: {'; '.join(wrong)}.")
    if not options.sets:
        return True, facts, []
    passed, rows = verify_checkpoint(
        VerifyOptions(
            options.name,
            str(download.path),
            options.sets,
            partial=options.partial,
            names=options.names,
            workers=options.workers,
            device=options.device,
            out=options.out,
        )
    )
    return passed, facts, rows
