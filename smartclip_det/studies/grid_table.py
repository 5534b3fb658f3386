"""Tables of a grid: means and spreads over seeds, and within-seed differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smartclip_det.core.mask_modes import current_names
from smartclip_det.formats.json_files import read_json
from smartclip_det.protocols.stamp import protocol_stamp, write_results
from smartclip_det.utils.files import write_whole

#: Row name -> metric name -> value.
Table = dict[str, dict[str, float]]
#: Presence metrics of alignments, measured by every run.
PRESENCE = ("map_shape", "map_colour_shape", "map_colour_shape_held_out")
#: Caption and binding metrics, measured by some runs.
CAPTIONS = (
    "map_caption_full",
    "map_caption_short",
    "map_caption_partial",
    "map_caption_held_out",
    "map_colour_shape_bound",
    "auc_binding",
)
DETECTION = ("base_ap50", "novel_ap50", "all_ap50")
#: Row pairs whose difference (first minus second) is reported: the gain from masks, and from the text's own mask.
PAIRS = (
    ("smartclip, hard", "clip, off"),
    ("smartclip, hard", "smartclip, off"),
    ("smartclip, hard", "smartclip, shuffled"),
    ("smartclip, hard", "smartclip, random"),
    ("two_stage_smartclip, hard", "two_stage_clip, off"),
    ("two_stage_smartclip, hard", "two_stage_smartclip, off"),
    ("smartclip_hard, tested hard", "clip_off, tested off"),
    ("smartclip_hard, tested hard", "smartclip_off, tested off"),
    ("smartclip_hard, tested hard", "smartclip_hard, tested shuffled"),
)


def numbers_of(folder: Path, scorings: Mapping[str, Sequence[str]], tests: Mapping[str, str]) -> Table:
    """Read the metrics of one seed, by row.

    Args:
        folder: folder of the seed.
        scorings: mask modes of each alignment; one row per mode.
        tests: detection row -> file name.

    Raises:
        UserError: for a missing file.
    """
    rows: Table = {}
    for name, modes in scorings.items():
        metrics = current_names(read_json(folder / f"{name}.metrics.json", "result file")["metrics"])
        probe = read_json(folder / f"probe_{name}.json", "result file")["metrics"]
        for mode in modes:
            row = {k: metrics[f"{k}_{mode}"] for k in PRESENCE}
            row |= {k: metrics[f"{k}_{mode}"] for k in CAPTIONS if f"{k}_{mode}" in metrics}
            row |= {
                f"{g}_{v}": probe[g][view][mode]
                for g in ("base", "novel")
                for v, view in (("crop", "crop"), ("dense", "dense_value"))
            }
            rows[f"{name}, {mode}"] = row
    for row_name, file in tests.items():
        metrics = read_json(folder / f"detection_{file}.metrics.json", "result file")["metrics"]
        rows[row_name] = {k: metrics[k] for k in DETECTION}
    return rows


def write_table(out: Path, by_seed: Mapping[int, Table], facts: Mapping[str, Any]) -> None:
    """Write ``study.json`` with all numbers, and ``study.md`` with means, spreads and differences."""
    seeds = list(by_seed)
    summary = {
        row: {k: spread([by_seed[s][row][k] for s in seeds]) for k in values}
        for row, values in by_seed[seeds[0]].items()
    }
    differences = {
        f"{a} minus {b}": {
            k: difference([by_seed[s][a][k] - by_seed[s][b][k] for s in seeds]) for k in summary[a] if k in summary[b]
        }
        for a, b in PAIRS
        if a in summary and b in summary
    }
    stamp = protocol_stamp(
        "study",
        seeds=seeds,
        spread="standard deviation over seeds",
        interval="95 % of the mean difference, Student's t over seeds",
        **facts,
    )
    write_results(
        out / "study.json", stamp, summary, by_seed={str(s): v for s, v in by_seed.items()}, differences=differences
    )
    text = markdown(summary, differences, seeds)
    write_whole(out / "study.md", text)
    print(text, flush=True)


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean and standard deviation (None for a single seed)."""
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def difference(values: Sequence[float]) -> dict[str, Any]:
    """Return within-seed differences, their mean, and the 95 % interval of the mean (Student's t over seeds)."""
    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return {"by_seed": list(values), "mean": mean, "low": None, "high": None}
    from scipy.stats import t

    half = float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return {"by_seed": list(values), "mean": mean, "low": mean - half, "high": mean + half}


def markdown(
    summary: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    differences: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
) -> str:
    """Format tables of means and of spreads for rows with equal columns, then one table per row pair."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for row, values in summary.items():
        groups.setdefault(tuple(values), []).append(row)
    parts = []
    for columns, rows in groups.items():
        for what, title in (("mean", "Mean"), ("std", "Standard deviation")):
            body = [[row, *(summary[row][c][what] for c in columns)] for row in rows]
            number = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
            parts.append(f"{title} over {number}\n\n{lines_of(['', *columns], body)}")
    for pair, by_metric in differences.items():
        body = [[k, *d["by_seed"], d["mean"], d["low"], d["high"]] for k, d in by_metric.items()]
        header = ["", *(f"seed {s}" for s in seeds), "mean", "low", "high"]
        parts.append(
            f"{pair}: within-seed differences and the 95 % interval of their mean\n\n{lines_of(header, body, '+.3f')}"
        )
    return "\n\n".join(parts) + "\n"


def lines_of(header: Sequence[str], rows: Sequence[Sequence[str | float | None]], form: str = ".3f") -> str:
    """Format a Markdown table; missing values read n/a."""

    def cell(value: str | float | None) -> str:
        if isinstance(value, str):
            return value
        return "n/a" if value is None else f"{value:{form}}"

    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(cell(c) for c in row)} |" for row in rows)])
