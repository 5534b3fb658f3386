"""Download, verify, unpack and count the files of a benchmark; finished steps are not repeated."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import check_choice
from smartclip_det.formats.benchmarks.counts import check_benchmark
from smartclip_det.formats.benchmarks.entries import Benchmark, BenchmarkFile, find_benchmark
from smartclip_det.utils.archives import unpack
from smartclip_det.utils.disk import free_bytes, refuse_full_disk
from smartclip_det.utils.downloads import download, size_of
from smartclip_det.utils.files import write_whole


@dataclass(frozen=True)
class Plan:
    """Planned downloads of a benchmark.

    Attributes:
        benchmark: registry entry.
        folder: target folder.
        here: files that are complete.
        coming: files to download.
        sizes: bytes of each file to download; None if neither the registry nor the server knows.
        free: free bytes on the disk.
    """

    benchmark: Benchmark
    folder: Path
    here: tuple[BenchmarkFile, ...]
    coming: tuple[BenchmarkFile, ...]
    sizes: Mapping[BenchmarkFile, int | None]
    free: int

    @property
    def known_bytes(self) -> int:
        """Total bytes to download, as far as known."""
        return sum(size or 0 for size in self.sizes.values())


def plan(name: str, data: Path, parts: Sequence[str] = (), *, ask: bool = False) -> Plan:
    """List complete files and files to download.

    Args:
        name: name of the benchmark.
        data: the data folder.
        parts: parts to include; empty for all.
        ask: query servers for sizes missing in the registry.

    Raises:
        UserError: for unknown names and parts.
    """
    benchmark = find_benchmark(name)
    for part in parts:
        check_choice(f"part of {name}", part, benchmark.parts)
    folder = data / benchmark.folder
    files = [f for f in benchmark.files if not parts or f.part in parts]
    done = _Done(folder, benchmark)
    here = tuple(f for f in files if done.is_done(f))
    coming = tuple(f for f in files if f not in here)
    sizes = {f: size_of(f.where()) if ask and f.bytes is None else f.bytes for f in coming}
    return Plan(benchmark, folder, here, coming, sizes, free_bytes(folder))


def get_benchmark(name: str, data: Path, parts: Sequence[str] = (), *, keep: bool = False) -> list[str]:
    """Download and unpack missing files, then check the counts.

    Args:
        name: name of the benchmark.
        data: the data folder.
        parts: parts to download; empty for all.
        keep: keep archives after unpacking.

    Returns:
        One line per check.

    Raises:
        UserError: for any failure; finished steps are kept and the same call resumes.
    """
    todo = plan(name, data, parts)
    refuse_full_disk(todo.known_bytes, todo.folder, name, "Choose parts (--only), or another folder (--out).")
    done = _Done(todo.folder, todo.benchmark)
    for file in todo.coming:
        target = todo.folder / file.to
        path = (done.folder if file.unpack else target) / file.file
        if not path.is_file():
            download(file.where(), path, size=file.bytes, hashes=file.hashes())
        if file.unpack:
            unpack(path, target)
        done.mark(file)
        if file.unpack and not keep:
            path.unlink()
    return check_benchmark(todo.benchmark, data, parts)


class _Done:
    """Record of completed files, stored next to them, as archives are deleted after unpacking."""

    def __init__(self, folder: Path, benchmark: Benchmark) -> None:
        self.root, self.folder = folder, folder / ".downloads"
        self._path = self.folder / f"{benchmark.name}.json"

    def _read(self) -> dict[str, Any]:
        try:
            record = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def is_done(self, file: BenchmarkFile) -> bool:
        """Whether the file's outputs exist, downloaded or manual.

        An unmarked archive means that unpacking was interrupted.
        """
        there = all((self.root / g).exists() for g in file.gives)
        return there and (self._key(file) in self._read() or not (self.folder / file.file).exists())

    def mark(self, file: BenchmarkFile) -> None:
        """Mark a file as done."""
        write_whole(self._path, json.dumps({**self._read(), self._key(file): list(file.gives)}, indent=1) + "\n")

    @staticmethod
    def _key(file: BenchmarkFile) -> str:
        return f"{file.to}/{file.file}"
