"""Download benchmarks by name from their official hosts into the layout described in data/README.md.

    smartclip-det data get                                 # list all benchmarks
    smartclip-det data get coco-2017 --dry-run             # show the download size
    smartclip-det data get coco-2017 --only annotations val
    smartclip-det data get refcoco lvis-v1 --out /big/data

Interrupted downloads resume; complete files are not downloaded again. Sizes and hashes are verified where known, and
image and annotation counts at the end. For benchmarks that need an account, the page to download from is printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smartclip_det.formats.benchmarks.getting import Plan


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add("names", nargs="*", help="benchmark names; without any, all are listed")
    add("--out", type=Path, default=Path("data"), help="data folder; default data")
    add("--only", nargs="+", default=[], metavar="PART", help="only these parts, as named in the list")
    add("--dry-run", action="store_true", help="show what would be downloaded, its size, and what is present")
    add("--keep-archives", action="store_true", help="keep archives after unpacking")


def run(args: argparse.Namespace) -> None:
    """List benchmarks, show the plan, or download."""
    from smartclip_det.formats.benchmarks import benchmarks, get_benchmark, plan

    if not args.names:
        for benchmark in benchmarks().values():
            hand = "; partly manual" if benchmark.by_hand and benchmark.files else ""
            parts = ", ".join(benchmark.parts) or "manual"
            print(f"{benchmark.name:20s} {parts}{hand}; licence {benchmark.licence or 'not stated'}")
        return
    plans = [plan(name, args.out, args.only, ask=True) for name in args.names]
    for todo in plans:
        print(_plan_text(todo))
    if args.dry_run:
        return
    for name in args.names:
        for line in get_benchmark(name, args.out, args.only, keep=args.keep_archives):
            print(f"complete: {line}")


def _plan_text(todo: Plan) -> str:
    benchmark = todo.benchmark
    lines = [f"{benchmark.name}: into {todo.folder}; licence {benchmark.licence or 'not stated'}; {benchmark.home}"]
    lines += [f"  present   {file.file}" for file in todo.here]
    for file in todo.coming:
        size = todo.sizes[file]
        text = "size unknown" if size is None else f"{size / 1e9:,.3f} GB"
        lines.append(f"  download  {file.file} ({file.part}): {text}")
    if todo.coming:
        unknown = sum(size is None for size in todo.sizes.values())
        more = f", and {unknown} files of unknown size," if unknown else ""
        lines.append(f"  {todo.known_bytes / 1e9:,.3f} GB{more} to download; {todo.free / 1e9:,.0f} GB free")
    lines += [f"  requires  {name} for its images: smartclip-det data get {name}" for name in benchmark.needs]
    lines += [f"  manual    {benchmark.by_hand}"] if benchmark.by_hand else []
    return "\n".join(lines)
