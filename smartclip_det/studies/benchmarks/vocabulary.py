"""Benchmark setting a vocabulary at run time, with and without the cache of encoded texts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from smartclip_det.models.towers import SmartCLIP, architecture
from smartclip_det.models.vocabulary import build_bank
from smartclip_det.studies.benchmarks.measuring import seconds_of


def run(sizes: list[int], arch: str) -> dict[str, Any]:
    """Time ``build_bank`` for generated names, without and with cached encodings."""
    # Use the embedding dimension of ViT-B/16, which sets the cache size; the tower's depth only affects encoding.
    encoder = SmartCLIP(architecture(arch).with_(embed_dim=512)).eval()
    out: dict[str, Any] = {}
    print(f"\nvocabulary ({arch}, one prompt per class)\n  names   encode s   cached s")
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            names = [f"thing {i}" for i in range(size)]
            cold = seconds_of(
                lambda n=names, s=size: build_bank(encoder, n, cache_dir=Path(folder) / str(s), progress=False)
            )
            warm = seconds_of(
                lambda n=names, s=size: build_bank(encoder, n, cache_dir=Path(folder) / str(s), progress=False)
            )
            out[str(size)] = {"encode": cold, "cached": warm}
            print(f"{size:7d}  {cold:9.2f}  {warm:9.3f}")
    return out
