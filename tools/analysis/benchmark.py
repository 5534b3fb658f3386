#!/usr/bin/env python
"""Time and memory of what this project claims to do fast, beside its peers, in one run.

    python tools/analysis/benchmark.py similarity
    python tools/analysis/benchmark.py vocabulary --names 1 80 1203 20000
    python tools/analysis/benchmark.py detect --names 1 80 1203 20000 --sizes 640
    python tools/analysis/benchmark.py towers --sizes 640 1024
    python tools/analysis/benchmark.py train --sizes 640 --rounds 2
    python tools/analysis/benchmark.py one-stage --names 80 1203
    python tools/analysis/benchmark.py grounding-dino --names 80 1203 --rounds 1
    python tools/analysis/benchmark.py ground --sizes 640 384 --sentences 1 10 100 500 --proposals 10 100
    python tools/analysis/benchmark.py evaluation --full
    python tools/analysis/benchmark.py alignment --batch 16 --rounds 3
    python tools/analysis/benchmark.py alignment --device cuda --bf16 --batch 256

Weights are random, text banks and results generated. Peers of transformers (OWLv2, Grounding DINO's text side, CLIP)
need that package (extra dev); without it they are left out, which is printed. Times are noisy: read ratios.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from smartclip_det.protocols.stamp import protocol_stamp, write_results
from smartclip_det.utils.cli import run_tool

SUBJECTS = ("similarity", "vocabulary", "detect", "towers", "train", "one-stage", "grounding-dino", "evaluation",
            "alignment", "ground")  # fmt: skip


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--names", type=int, nargs="+", default=[1, 80, 1203, 20000], help="vocabulary sizes")
    parser.add_argument("--sizes", type=int, nargs="+", default=[640], help="input sides in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="measured runs of each variant, in turns")
    parser.add_argument("--max-gib", type=float, default=4.0, help="similarity: largest tensor of the broadcast form")
    parser.add_argument("--arch", help="vocabulary, alignment: towers with random weights; default: tiny, B/16")
    parser.add_argument("--batch", type=int, default=16, help="alignment: pairs of a step")
    parser.add_argument("--head", type=int, default=512, help="alignment: batch of the head alone")
    parser.add_argument("--dim", type=int, default=512, help="alignment: D of the head alone")
    parser.add_argument("--chunks", type=int, default=4, help="alignment: chunks of captions of like length")
    parser.add_argument("--bf16", action="store_true", help="alignment: autocast to bfloat16")
    parser.add_argument("--images", type=Path, help="alignment: folder of images, to measure the loader")
    parser.add_argument("--captions", type=Path, help="alignment: their captions; default: pairs in the folder")
    parser.add_argument("--workers", type=int, default=2, help="alignment: of the loader")
    parser.add_argument("--sentences", type=int, nargs="+", default=[1, 10, 100, 500], help="ground: per image")
    parser.add_argument("--proposals", type=int, nargs="+", default=[10, 100], help="ground: boxes per image")
    parser.add_argument("--full", action="store_true", help="evaluation: LVIS at 19,809 images too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON; default: work_dirs/benchmark_SUBJECT.json")
    return parser.parse_args()


def main() -> None:
    """Measure one subject and write what was measured."""
    args = parse_args()
    if args.subject == "similarity":
        from benchmarks import similarity

        found = similarity.run(args.rounds, args.max_gib, args.device)
    elif args.subject == "vocabulary":
        from benchmarks import vocabulary

        found = vocabulary.run(args.names, args.arch or "SmartCLIP-tiny")
    elif args.subject == "alignment":
        from benchmarks import alignment

        args.arch = args.arch or "SmartCLIP-B-16"
        found = alignment.run(args)
    elif args.subject == "ground":
        from benchmarks import ground

        found = ground.run(args)
    elif args.subject == "evaluation":
        from benchmarks import evaluation

        found = evaluation.run(args.full)
    else:
        from benchmarks import detect

        work = {"towers": lambda s: detect.towers(s, args.rounds, args.device),
                "train": lambda s: detect.training(s, args.rounds, args.device),
                "detect": lambda s: detect.by_vocabulary(s, args.names, args.rounds, args.device),
                "one-stage": lambda s: detect.one_stage(s, args.names, args.rounds, args.device),
                "grounding-dino": lambda s: detect.grounding_dino(s, args.names, args.rounds, args.device)}  # fmt: skip
        found = {str(size): work[args.subject](size) for size in args.sizes}
    stamp = protocol_stamp(f"benchmark {args.subject}", device=args.device, threads=torch.get_num_threads(),
                           cores=os.cpu_count(), rounds=args.rounds)  # fmt: skip
    out = args.out or Path(f"work_dirs/benchmark_{args.subject}.json")
    print(f"\nwritten: {write_results(out, stamp, found)}")


if __name__ == "__main__":
    run_tool(main)
