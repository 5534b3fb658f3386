"""Listing of named weights and their cache state. Torch-free, except for open_clip's own table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.models.zoo.fetching import cached_path
from smartclip_det.models.zoo.names import Weights, find, registry


def weights_rows(every: bool = False) -> list[dict[str, Any]]:
    """One row per name: ``name``, ``kind``, ``megabytes`` (None: unknown), ``licence``, ``cached`` (path or None).

    Args:
        every: include open_clip's table, whose files are only known when they are downloaded.
    """
    known = list(registry().values())
    if every:
        from smartclip_det.models.towers.tokenizer import open_clip_names, open_clip_pretrained

        listed = {w.open_clip for w in known}
        known += [
            find(f"open_clip:{m}/{t}")
            for m in open_clip_names()
            for t in open_clip_pretrained(m)
            if f"{m}/{t}" not in listed
        ]
    return [_row(w) for w in known]


def _row(weights: Weights) -> dict[str, Any]:
    here = next((p for p in map(cached_path, weights.sources) if p), None)
    size = here.stat().st_size / 1e6 if here else weights.sources[0].megabytes
    return {
        "name": weights.name,
        "kind": weights.kind,
        "megabytes": size,
        "licence": weights.licence,
        "cached": str(here) if here else None,
    }


def weights_facts(name: str) -> dict[str, Any]:
    """Everything known about a name: its row, sources, sizes, published numbers and their source.

    Raises:
        UserError: for an unknown name (with the closest ones) or a file.
    """
    if Path(name).exists():
        raise UserError(
            f"{name} is a file, not a name. To measure a file run smartclip-det check checkpoint MODEL {name} "
            "SET=FOLDER."
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
