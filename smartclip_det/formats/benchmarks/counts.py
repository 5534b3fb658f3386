"""Is a benchmark whole? By the counts that its readers assert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.formats.benchmarks.entries import Benchmark

_IMAGES = (".jpg", ".jpeg", ".png")


def check_benchmark(benchmark: Benchmark, data: Path, parts: Sequence[str] = ()) -> list[str]:
    """Count what is there.

    Args:
        benchmark: whose checks run; those of files that a part gives, where parts are given.
        data: the data folder.
        parts: that are meant to be there; empty for all.

    Returns:
        What was found, a line for each check.

    Raises:
        UserError: for a count that is not the full set's.
    """
    folder = data / benchmark.folder
    left_out = {g for f in benchmark.files if parts and f.part not in parts for g in f.gives}
    return [_CHECKS[c["kind"]](folder / c["path"], c) for c in benchmark.checks if c["path"] not in left_out]


def _compare(path: Path, found: Mapping[str, int], told: Mapping[str, Any]) -> str:
    wrong = [f"{n:,} {what} (of {told[what]:,})" for what, n in found.items() if told[what] != n]
    if wrong:
        raise UserError(f"{path} is not the full set: {', '.join(wrong)}. Remove it and run the same command again.")
    return f"{path}: {', '.join(f'{n:,} {what}' for what, n in found.items())}"


def _images(path: Path, told: Mapping[str, Any]) -> str:
    count = sum(p.suffix.lower() in _IMAGES for p in path.rglob("*")) if path.is_dir() else 0
    return _compare(path, {"images": count}, told)


def _files(path: Path, told: Mapping[str, Any]) -> str:
    return _compare(path, {"files": sum(1 for _ in path.glob(f"*{told['ending']}"))}, told)


def _lines(path: Path, told: Mapping[str, Any]) -> str:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return _compare(path, {"lines": len(text.split())}, told)


def _coco(path: Path, told: Mapping[str, Any]) -> str:
    """Entries of a COCO file, counted as they pass: the training files have half a gigabyte."""
    import ijson

    if not path.is_file():
        raise UserError(f"{path} is not there. Remove the folder .downloads beside it and run the same command again.")
    wanted = {f"{part}.item": part for part in ("images", "annotations", "categories") if part in told}
    found = dict.fromkeys(wanted.values(), 0)
    try:
        with path.open("rb") as handle:
            for prefix, event, _ in ijson.parse(handle):
                if event == "start_map" and prefix in wanted:
                    found[wanted[prefix]] += 1
    except ijson.JSONError as error:
        raise UserError(f"{path} is not valid JSON ({error}); it may be cut short.") from error
    return _compare(path, found, told)


def _expressions(path: Path, told: Mapping[str, Any]) -> str:
    from smartclip_det.formats.expressions.counts import check_counts
    from smartclip_det.formats.expressions.loading import load_expressions

    found = check_counts(told["set"], load_expressions(path))
    return f"{path}: {', '.join(f'{n:,} {split}' for split, n in found.items())}"


_CHECKS = {"images": _images, "files": _files, "lines": _lines, "coco": _coco, "expressions": _expressions}
