"""Weights by name: what there is, what is on this machine, and whether it is what it should be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.models.zoo import Weights, fetch, find, held, registry


def weights_rows(every: bool = False) -> list[dict[str, Any]]:
    """One row a name: ``name``, ``kind``, ``megabytes`` (None: not known), ``licence``, ``cached`` (a path or None).

    Args:
        every: also all of open_clip's table, whose files are found when they are fetched.
    """
    known = list(registry().values())
    if every:
        from smartclip_det.models.towers.tokenizer import open_clip_names, open_clip_pretrained

        said = {w.open_clip for w in known}
        known += [
            find(f"open_clip:{m}/{t}")
            for m in open_clip_names()
            for t in open_clip_pretrained(m)
            if f"{m}/{t}" not in said
        ]
    return [_row(w) for w in known]


def _row(weights: Weights) -> dict[str, Any]:
    here = next((p for p in map(held, weights.sources) if p), None)
    size = here.stat().st_size / 1e6 if here else weights.sources[0].megabytes
    return {
        "name": weights.name,
        "kind": weights.kind,
        "megabytes": size,
        "licence": weights.licence,
        "cached": str(here) if here else None,
    }


def weights_facts(name: str) -> dict[str, Any]:
    """All that is known of one name: its row, its sources, sizes, published numbers and who says so.

    Raises:
        UserError: for unknown names, with the nearest, and for files.
    """
    if Path(name).exists():
        raise UserError(
            f"{name} is a file, where a name is meant. smartclip-det check checkpoint MODEL {name} SET=FOLDER measures "
            "a file."
        )
    weights = find(name)
    sources = [{"source": str(s), "sha256": s.sha256, "megabytes": s.megabytes} for s in weights.sources]
    return {
        **_row(weights),
        "sources": sources,
        "image_size": weights.image_size,
        "context_length": weights.context_length,
        "activation": weights.activation,
        "open_clip": weights.open_clip or None,
        "published": dict(weights.published),
        "published_source": weights.published_source or None,
    }


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
