#!/usr/bin/env python
"""Does a checkpoint give its published numbers here? Pass or fail, as JSON and as the exit code.

    python tools/verify_checkpoint.py smartclip-b16 smartclip_b16.pt coco-5k=data/coco sharegpt4v-1k=data/sharegpt4v
    python tools/verify_checkpoint.py clip-b16 ViT-B-16.pt coco-5k=data/coco imagenet=data/imagenet/val --device cuda

Each SET=FOLDER is measured by tools/retrieval.py or tools/classify.py, plain scoring, as published. Exit code 0: all
within tolerance; 1: some not; 2: it could not be measured.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.formats.json_files import read_json
from smartclip_det.protocols.published import ANCHORS, anchors_of, verdict
from smartclip_det.protocols.stamp import protocol_stamp, write_results
from smartclip_det.utils.cli import run_tool

TOOLS = Path(__file__).resolve().parent


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=ANCHORS)
    parser.add_argument("checkpoint", help="its weights")
    parser.add_argument("sets", nargs="+", metavar="SET=FOLDER", help="what to measure, and where it is")
    parser.add_argument(
        "--partial", action="store_true", help="also parts of sets: shows that all runs, proves nothing"
    )
    parser.add_argument("--names", help="imagenet: names of its folders, see tools/classify.py")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/verify_checkpoint.json"))
    return parser.parse_args()


def main() -> int:
    """Measure every set, compare, tell."""
    args = parse_args()
    if not Path(args.checkpoint).exists():
        raise UserError(f"No checkpoint at {args.checkpoint}.")
    folders: dict[str, Path] = {}
    for item in args.sets:
        name, equals, folder = item.partition("=")
        if not equals:
            raise UserError(f"Give SET=FOLDER; {item!r} has no '='.")
        folders[name] = Path(folder)
    anchors = anchors_of(args.model, list(folders))
    measured = {name: measure(name, folder, args) for name, folder in folders.items()}
    rows = [verdict(a, measured[a.set]["metrics"][a.metric]) for a in anchors]
    print(f"{'set':22s} {'metric':14s} {'published':>9s} {'measured':>9s} {'tolerance':>9s}")
    for r in rows:
        print(f"{r['set']:22s} {r['metric']:14s} {r['published']:9.2f} {r['measured']:9.2f} {r['tolerance']:9.2f}  "
              f"{'pass' if r['passed'] else 'FAIL'}")  # fmt: skip
    passed = all(r["passed"] for r in rows) and not args.partial
    stamp = protocol_stamp("verify_checkpoint", model=args.model, partial=args.partial,
                           sets={n: m["protocol"] for n, m in measured.items()})  # fmt: skip
    write_results(args.out, stamp, {"passed": passed}, anchors=rows)
    print(f"{'PASSED' if passed else 'NOT PASSED'}{' (parts prove nothing)' if args.partial else ''}: {args.out}")
    return 0 if passed else 1


def measure(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The result file of one set, by the tool that users have."""
    out = args.out.parent / f"verify_{args.model}_{name}.json"
    if name == "imagenet":
        command = [str(TOOLS / "classify.py"), str(folder), *(["--names", args.names] if args.names else [])]
    else:
        command = [str(TOOLS / "retrieval.py"), name, "--data", str(folder), *(["--partial"] if args.partial else [])]
    command += [
        "--checkpoint",
        args.checkpoint,
        "--device",
        args.device,
        "--workers",
        str(args.workers),
        "--out",
        str(out),
    ]
    done = subprocess.run([sys.executable, *command], check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"{name} could not be measured: {done.stderr.strip().splitlines()[-1] if done.stderr else ''}")
    return read_json(out, "result file")


if __name__ == "__main__":
    run_tool(main)
