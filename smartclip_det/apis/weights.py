"""Is the file of a name what it should be: its hash, its sizes, its published numbers?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.models.zoo import fetch


@dataclass(frozen=True)
class VerifyWeightsOptions:
    """What is verified.

    Attributes:
        name: of the weights; what is not here is downloaded.
        sets: folder by name of a set with published numbers; empty: file and sizes alone.
        partial: see :class:`VerifyOptions`.
        names: of imagenet's folders.
        workers: processes that read images.
        device: see :func:`resolve_device`.
        out: JSON of the measured sets.
    """

    name: str
    sets: Mapping[str, Path] = field(default_factory=dict)
    partial: bool = False
    names: str | None = None
    workers: int = 4
    device: str = "auto"
    out: Path = Path("work_dirs/verify_checkpoint.json")


def verify_weights(options: VerifyWeightsOptions) -> tuple[bool, dict[str, Any], Sequence[Mapping[str, Any]]]:
    """Fetch, check the hash, read, compare with what the registry says, and measure the sets that are given.

    Returns:
        Whether all is as it should be, what was found, and a row for each published number that was measured.

    Raises:
        UserError: for whatever stops the download, a wrong hash, a file that is not what its name says, and sets that
            cannot be measured.
    """
    from smartclip_det.apis.checking import VerifyOptions, verify_checkpoint
    from smartclip_det.models.towers.source import load_encoder

    found = fetch(options.name)
    towers = load_encoder({"checkpoint": options.name})
    config, weights = towers.config, found.weights
    facts = {
        "path": str(found.path),
        "sha256": found.sha256,
        "checkpoint_hash": towers.checkpoint_hash,
        "image_size": config.image_size,
        "context_length": config.context_length,
        "activation": getattr(config, "activation", None),
    }
    said = {k: getattr(weights, k) for k in ("image_size", "context_length", "activation")}
    wrong = [f"{k} {facts[k]}, by the registry {v}" for k, v in said.items() if v is not None and facts[k] != v]
    if wrong:
        raise UserError(f"{found.path} is not what {options.name} should be: {'; '.join(wrong)}.")
    if not options.sets:
        return True, facts, []
    passed, rows = verify_checkpoint(
        VerifyOptions(
            options.name,
            str(found.path),
            options.sets,
            partial=options.partial,
            names=options.names,
            workers=options.workers,
            device=options.device,
            out=options.out,
        )
    )
    return passed, facts, rows
