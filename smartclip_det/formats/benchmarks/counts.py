"""Check that a downloaded benchmark is complete, by the counts that its readers require."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.formats.benchmarks.entries import Benchmark

_IMAGES = (".jpg", ".jpeg", ".png")


def check_benchmark(benchmark: Benchmark, data: Path, parts: Sequence[str] = ()) -> list[str]:
    """Count images, files and entries, and compare with the expected numbers.

    Args:
        benchmark: benchmark to check; if ``parts`` are given, only checks of files in these parts run.
        data: the data folder.
        parts: downloaded parts; empty for all.

    Returns:
        One line per check.

    Raises:
        UserError: for a count that differs from the full set.
    """
    folder = data / benchmark.folder
    skipped = {g for f in benchmark.files if parts and f.part not in parts for g in f.gives}
    return [_CHECKS[c["kind"]](folder / c["path"], c) for c in benchmark.checks if c["path"] not in skipped]


def _compare(path: Path, counts: Mapping[str, int], expected: Mapping[str, Any]) -> str:
    wrong = [f"{n:,} {what} (of {expected[what]:,})" for what, n in counts.items() if expected[what] != n]
    if wrong:
        raise UserError(f"{path} is not the full set: {', '.join(wrong)}. Remove it and run the same command again.")
    return f"{path}: {', '.join(f'{n:,} {what}' for what, n in counts.items())}"


def _images(path: Path, expected: Mapping[str, Any]) -> str:
    count = sum(p.suffix.lower() in _IMAGES for p in path.rglob("*")) if path.is_dir() else 0
    return _compare(path, {"images": count}, expected)


def _files(path: Path, expected: Mapping[str, Any]) -> str:
    return _compare(path, {"files": sum(1 for _ in path.glob(f"*{expected['ending']}"))}, expected)


def _lines(path: Path, expected: Mapping[str, Any]) -> str:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return _compare(path, {"lines": len(text.split())}, expected)


def _coco(path: Path, expected: Mapping[str, Any]) -> str:
    """Count the entries of a COCO file while streaming it: training files are half a gigabyte."""
    import ijson

    if not path.is_file():
        raise UserError(
            f"{path} does not exist. Remove the .downloads folder next to it and run the same command again."
        )
    wanted = {f"{part}.item": part for part in ("images", "annotations", "categories") if part in expected}
    counts = dict.fromkeys(wanted.values(), 0)
    try:
        with path.open("rb") as handle:
            for prefix, event, _ in ijson.parse(handle):
                if event == "start_map" and prefix in wanted:
                    counts[wanted[prefix]] += 1
    except ijson.JSONError as error:
        raise UserError(f"{path} is not valid JSON ({error}); it may be cut short.") from error
    return _compare(path, counts, expected)


def _expressions(path: Path, expected: Mapping[str, Any]) -> str:
    from smartclip_det.formats.expressions.counts import check_counts
    from smartclip_det.formats.expressions.loading import load_expressions

    counts = check_counts(expected["set"], load_expressions(path))
    return f"{path}: {', '.join(f'{n:,} {split}' for split, n in counts.items())}"


_CHECKS = {"images": _images, "files": _files, "lines": _lines, "coco": _coco, "expressions": _expressions}
