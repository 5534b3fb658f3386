"""Benchmarks by name, from their owners' addresses into the layout of data/README.md.

    smartclip-det data get                                 # what there is
    smartclip-det data get coco-2017 --dry-run             # gigabytes first
    smartclip-det data get coco-2017 --only annotations val
    smartclip-det data get refcoco lvis-v1 --out /big/data

A download that breaks goes on from there when the same command runs again; what is whole is not fetched twice.
Sizes and hashes are checked where they are known, and the counts that the readers assert at the end. What needs an
account is told, with the page.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smartclip_det.formats.benchmarks.getting import Plan


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add = parser.add_argument
    add("names", nargs="*", help="benchmarks; without, all are listed")
    add("--out", type=Path, default=Path("data"), help="data folder; default data")
    add("--only", nargs="+", default=[], metavar="PART", help="parts of it, as the list names them")
    add("--dry-run", action="store_true", help="tell what would come, how much of it, and what is here")
    add("--keep-archives", action="store_true", help="keep archives when they are unpacked")


def run(args: argparse.Namespace) -> None:
    """List, plan or fetch."""
    from smartclip_det.formats.benchmarks import benchmarks, get_benchmark, plan

    if not args.names:
        for benchmark in benchmarks().values():
            hand = "; by hand in part" if benchmark.by_hand and benchmark.files else ""
            parts = ", ".join(benchmark.parts) or "by hand"
            print(f"{benchmark.name:20s} {parts}{hand}; licence {benchmark.licence or 'not stated'}")
        return
    plans = [plan(name, args.out, args.only, ask=True) for name in args.names]
    for todo in plans:
        print(_told(todo))
    if args.dry_run:
        return
    for name in args.names:
        for line in get_benchmark(name, args.out, args.only, keep=args.keep_archives):
            print(f"whole: {line}")


def _told(todo: Plan) -> str:
    benchmark = todo.benchmark
    lines = [f"{benchmark.name}: into {todo.folder}; licence {benchmark.licence or 'not stated'}; {benchmark.home}"]
    lines += [f"  here    {file.file}" for file in todo.here]
    for file in todo.coming:
        size = todo.sizes[file]
        told = "size not known" if size is None else f"{size / 1e9:,.3f} GB"
        lines.append(f"  to come {file.file} ({file.part}): {told}")
    if todo.coming:
        unknown = sum(size is None for size in todo.sizes.values())
        more = f", and {unknown} files of unknown size," if unknown else ""
        lines.append(f"  {todo.known_bytes / 1e9:,.3f} GB{more} to fetch; {todo.free / 1e9:,.0f} GB are free")
    lines += [f"  needs   {name} for its photographs: smartclip-det data get {name}" for name in benchmark.needs]
    lines += [f"  by hand {benchmark.by_hand}"] if benchmark.by_hand else []
    return "\n".join(lines)
