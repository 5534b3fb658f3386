"""Timing and peak memory of variants. Runs are interleaved, so that noise of the machine affects all of them alike."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def synchronise() -> None:
    """Synchronise the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class PeakMemory:
    """Peak MiB added by a block: of the GPU if there is one, else of the process (Linux)."""

    def __enter__(self) -> PeakMemory:
        """Start measuring."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated() / 2**20
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self._before = _status("VmRSS")
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop measuring."""
        after = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else _status("VmHWM")
        self.mib = max(0.0, after - self._before)


def resident_mib() -> float:
    """Resident memory of the process in MiB (Linux)."""
    return _status("VmRSS")


def _status(key: str) -> float:
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return float(match.group(1)) / 1024 if match else float("nan")


def seconds_of(run: Callable[[], Any]) -> float:
    """Time one call."""
    synchronise()
    begin = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - begin


def in_turns(variants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Return ``median`` and ``min`` seconds and ``peak_mib`` per variant; the warm-up round measures memory."""
    out: dict[str, dict[str, float]] = {}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for name, run in variants.items():
        with PeakMemory() as memory:
            run()
        out[name] = {"peak_mib": memory.mib}
    for _ in range(rounds):
        for name, run in variants.items():
            times[name].append(seconds_of(run))
    for name, row in out.items():
        row.update(median=statistics.median(times[name]), min=min(times[name]))
    return out


def show(title: str, rows: Mapping[str, Mapping[str, float]], baseline: str) -> None:
    """Print a table with the ratio of each median to that of ``baseline``."""
    width = max(len(n) for n in rows)
    print(f"\n{title}\n{'':{width}s}   median ms   min ms   ratio   peak MiB")
    base = rows[baseline]["median"]
    for name, row in rows.items():
        print(
            f"{name:{width}s}  {row['median'] * 1e3:10.2f} {row['min'] * 1e3:8.2f}  {row['median'] / base:6.2f}"
            f"  {row['peak_mib']:9.0f}"
        )


def generated_bank(classes: int, dim: int, seed: int = 0) -> Any:
    """Build a bank of random vectors and masks of density 0.7, with a background row."""
    from smartclip_det.core.text_bank import TextBank

    g = torch.Generator().manual_seed(seed)

    def rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        embeds = torch.nn.functional.normalize(torch.randn(count, dim, generator=g), dim=1)
        return embeds, (torch.rand(count, dim, generator=g) < 0.7).float()

    background = TextBank(("background",), *rows(1))
    return TextBank(tuple(f"class {i}" for i in range(classes)), *rows(classes), background=background)
