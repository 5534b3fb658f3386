"""The registry of benchmarks. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from smartclip_det.core.errors import UserError, nearest


@dataclass(frozen=True)
class BenchmarkFile:
    """One download.

    Attributes:
        file: file name.
        part: part of the benchmark.
        gives: paths that exist when it is done, relative to the benchmark's folder.
        addresses: URLs, tried in this order.
        hub: Hugging Face data set that hosts the file, instead of ``addresses``.
        bytes: size in bytes; None if unknown.
        md5: as published, or measured independently by several people; None if unknown.
        sha256: same as ``md5``.
        unpack: whether it is an archive.
        to: target folder, relative to the benchmark's folder.
    """

    file: str
    part: str
    gives: tuple[str, ...]
    addresses: tuple[str, ...] = ()
    hub: str = ""
    bytes: int | None = None
    md5: str | None = None
    sha256: str | None = None
    unpack: bool = False
    to: str = "."

    def hashes(self) -> dict[str, str]:
        """Return the known hashes by algorithm."""
        return {k: v for k, v in (("md5", self.md5), ("sha256", self.sha256)) if v}

    def where(self) -> tuple[str, ...]:
        """Return the URLs; those of the hub follow ``HF_ENDPOINT``."""
        if not self.hub:
            return self.addresses
        from huggingface_hub import constants

        return (f"{constants.ENDPOINT}/datasets/{self.hub}/resolve/main/{quote(self.file)}",)


@dataclass(frozen=True)
class Benchmark:
    """A data set as distributed by its owners.

    Attributes:
        name: name on the command line.
        licence: licence; None if not stated.
        home: home page.
        folder: folder below the data folder, as in data/README.md.
        files: files to download.
        checks: see :func:`check_benchmark`.
        needs: other benchmarks whose images it uses.
        by_hand: what must be downloaded manually with an account or form, and where; empty if nothing.
    """

    name: str
    licence: str | None
    home: str
    folder: str
    files: tuple[BenchmarkFile, ...]
    checks: tuple[Mapping[str, Any], ...] = ()
    needs: tuple[str, ...] = ()
    by_hand: str = ""
    parts: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(dict.fromkeys(f.part for f in self.files)))


@lru_cache(maxsize=1)
def benchmarks() -> dict[str, Benchmark]:
    """Load all entries of ``registry.json``, in order."""
    registry: dict[str, dict[str, Any]] = json.loads(
        Path(__file__).with_name("registry.json").read_text(encoding="utf-8")
    )
    return {name: _entry(name, entry) for name, entry in registry.items()}


def _entry(name: str, entry: Mapping[str, Any]) -> Benchmark:
    files = [
        BenchmarkFile(**{**f, "gives": tuple(f["gives"]), "addresses": tuple(f.get("addresses", ()))})
        for f in entry["files"]
    ]
    lists = {k: tuple(entry.get(k, ())) for k in ("checks", "needs")}
    facts: dict[str, Any] = {**entry, **lists, "files": tuple(files)}
    return Benchmark(name, **facts)


def find_benchmark(name: str) -> Benchmark:
    """Look up a benchmark.

    Raises:
        UserError: for unknown names, with the nearest ones.
    """
    if name not in benchmarks():
        near = nearest(name, benchmarks())
        raise UserError(
            f"{name!r} is not a known benchmark. Nearest: {', '.join(near) or 'none'}. All: {', '.join(benchmarks())}."
        )
    return benchmarks()[name]
