"""The registry of benchmarks. No torch here."""

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
        file: its name.
        part: of the benchmark.
        gives: what is there when it is done, below the benchmark's folder.
        addresses: tried in this order.
        hub: data set of the Hugging Face hub that holds it, in place of addresses.
        bytes: size; None where it was not seen.
        md5: as published or measured by several; None where it was not seen.
        sha256: the same.
        unpack: whether it is an archive.
        to: folder below the benchmark's that it goes into.
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
        """By algorithm, those that are known."""
        return {k: v for k, v in (("md5", self.md5), ("sha256", self.sha256)) if v}

    def where(self) -> tuple[str, ...]:
        """Addresses; those of the hub follow ``HF_ENDPOINT``."""
        if not self.hub:
            return self.addresses
        from huggingface_hub import constants

        return (f"{constants.ENDPOINT}/datasets/{self.hub}/resolve/main/{quote(self.file)}",)


@dataclass(frozen=True)
class Benchmark:
    """A data set as its owners give it.

    Attributes:
        name: as it is typed.
        licence: None where none is stated.
        home: page of its owners.
        folder: below the data folder, as data/README.md has it.
        files: its downloads.
        checks: see :func:`check_benchmark`.
        needs: other benchmarks, whose photographs it uses.
        by_hand: what an account or a form is needed for, and where; empty for none.
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
    """Every entry of ``registry.json``, in its order."""
    told: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("registry.json").read_text(encoding="utf-8"))
    return {name: _entry(name, entry) for name, entry in told.items()}


def _entry(name: str, told: Mapping[str, Any]) -> Benchmark:
    files = [
        BenchmarkFile(**{**f, "gives": tuple(f["gives"]), "addresses": tuple(f.get("addresses", ()))})
        for f in told["files"]
    ]
    lists = {k: tuple(told.get(k, ())) for k in ("checks", "needs")}
    facts: dict[str, Any] = {**told, **lists, "files": tuple(files)}
    return Benchmark(name, **facts)


def find_benchmark(name: str) -> Benchmark:
    """The entry of a name.

    Raises:
        UserError: for unknown names, with the nearest.
    """
    if name not in benchmarks():
        near = nearest(name, benchmarks())
        raise UserError(
            f"{name!r} is no known benchmark. Nearest: {', '.join(near) or 'none'}. All: {', '.join(benchmarks())}."
        )
    return benchmarks()[name]
