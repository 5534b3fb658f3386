"""Benchmark speed and memory against peer implementations, in one run.

    smartclip-det bench similarity
    smartclip-det bench vocabulary --names 1 80 1203 20000
    smartclip-det bench detect --names 1 80 1203 20000 --sizes 640
    smartclip-det bench predict --names 1 80 1203 20000 --sizes 640 --proposals 100
    smartclip-det bench towers --sizes 640 1024
    smartclip-det bench train --sizes 640 --rounds 2
    smartclip-det bench one-stage --names 80 1203
    smartclip-det bench grounding-dino --names 80 1203 --rounds 1
    smartclip-det bench ground --sizes 640 384 --sentences 1 10 100 500 --proposals 10 100
    smartclip-det bench evaluation --full
    smartclip-det bench alignment --batch 16 --rounds 3
    smartclip-det bench alignment --device cuda --bf16 --batch 256
    smartclip-det bench alignment --host
    smartclip-det bench roofline

Weights are random; text banks and results are generated. The peers from transformers (OWLv2, the text side of Grounding
DINO, CLIP) need that package (extra dev); without it they are skipped with a note. Timings are noisy: compare ratios.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import add_device
from smartclip_det.core.words import PREDICT_PARTS

SUBJECTS = (
    "similarity",
    "vocabulary",
    "detect",
    "towers",
    "train",
    "one-stage",
    "grounding-dino",
    "evaluation",
    "alignment",
    "ground",
    "predict",
    "roofline",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("subject", choices=SUBJECTS, help="what to benchmark")
    parser.add_argument("--names", type=int, nargs="+", default=[1, 80, 1203, 20000], help="vocabulary sizes")
    parser.add_argument("--sizes", type=int, nargs="+", default=[640], help="input side lengths in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs per variant, interleaved")
    parser.add_argument(
        "--max-gib", type=float, default=4.0, help="similarity: largest tensor allowed for the broadcast form"
    )
    parser.add_argument("--arch", help="architecture with random weights; default: B/16 (vocabulary: tiny)")
    parser.add_argument(
        "--batch", type=int, help="alignment, roofline: pairs per step; default: 16 (--host and roofline: 256)"
    )
    parser.add_argument("--host", action="store_true", help="alignment: only the host work before the first kernel")
    parser.add_argument("--head", type=int, default=512, help="alignment: batch size for the loss head alone")
    parser.add_argument("--dim", type=int, default=512, help="alignment: D for the loss head alone")
    parser.add_argument("--chunks", type=int, default=4, help="alignment: chunks of captions of similar length")
    parser.add_argument("--bf16", action="store_true", help="alignment: autocast to bfloat16")
    parser.add_argument("--images", type=Path, help="alignment: folder of images, to benchmark the data loader")
    parser.add_argument(
        "--captions", type=Path, help="alignment: captions of --images; default: caption files in that folder"
    )
    parser.add_argument("--workers", type=int, default=2, help="alignment: data loader workers")
    parser.add_argument(
        "--sentences", type=int, nargs="+", default=[1, 10, 100, 500], help="ground: sentences per image"
    )
    parser.add_argument("--proposals", type=int, nargs="+", default=[10, 100], help="ground, predict: boxes per image")
    parser.add_argument("--pictures", type=int, default=200, help="predict: images in the stream used to track memory")
    parser.add_argument(
        "--parts", nargs="+", choices=PREDICT_PARTS, default=list(PREDICT_PARTS), help="predict: parts to benchmark"
    )
    parser.add_argument("--full", action="store_true", help="evaluation: also LVIS with 19,809 images")
    add_device(parser)
    parser.add_argument("--out", type=Path, help="JSON output; default: work_dirs/benchmark_SUBJECT.json")


def run(args: argparse.Namespace) -> None:
    """Benchmark one subject and print the output path."""
    from smartclip_det.studies.benchmarks.subjects import BenchOptions, measure

    print(f"\nwritten: {measure(BenchOptions(**vars(args)))}")
