"""Weights by name: what there is, and what is on this machine. No torch, but for open_clip's own table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.models.zoo.fetching import held
from smartclip_det.models.zoo.names import Weights, find, registry


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
