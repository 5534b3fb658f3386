r"""Zero-shot grounding of a file of referring expressions: candidate boxes, ranked by masked cosine.

    smartclip-det ground data/toy/refs/finetune_toy_val.json --images data/toy/images \
        --encoder work_dirs/toy/smartclip/epoch_1.pth --proposals ground-truth
    smartclip-det ground refs.jsonl --images train2014 --encoder smartclip_b16.pt --proposals detections.json \
        --instances instances.json --views crop blur --reading both --out pred.jsonl
    smartclip-det ground refs.jsonl --images train2014 --encoder smartclip_b16.pt --proposals detector \
        --config mm-grounding-dino.py --checkpoint mm-grounding-dino.pth --max-proposals 5 --detector-weight 0.5
    smartclip-det evaluate refcoco --ann refs.jsonl --pred pred.jsonl      # the same numbers

Proposals: "ground-truth" (all target boxes that the file names for an image, or all boxes of --instances), a COCO
result list, JSON lines of grounding predictions (any model's boxes, ranked again), "rpn" with --config and --checkpoint
of ours, or "detector" with those of any MMDetection detector; one that reads text is given the expression. The kind is
in every output: numbers of different kinds do not compare.

Readings: the whole expression under its mask; "chunks": its entities, each under its own, joined by places and
relations; "both": the product. Sentences with no target or several are left out, counted; with --answers all they are
kept, every box comes with a score of its own, and "none" and "many" are a threshold's answers:

    smartclip-det ground train.jsonl --images I --encoder W --answers all --out train_pred.jsonl
    smartclip-det study calibrate --ann train.jsonl --pred train_pred.jsonl
    smartclip-det evaluate grefcoco --ann val.jsonl --pred val_pred.jsonl --threshold T
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import Old, add_cfg_options, add_device, add_out, add_presence
from smartclip_det.core.mask_modes import MASK_MODES
from smartclip_det.core.words import DENSE_MODES, READINGS, VIEWS
from smartclip_det.utils.cli import format_metrics

OLD = (Old("--checkpoint", "--encoder", unless=("--encoder",)), Old("--detector", "--checkpoint"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add = parser.add_argument
    add("ann", help="expressions: JSON lines, MDETR json, or refs pickle")
    add("--split", help="split of the expressions")
    add("--images", type=Path, required=True, help="folder of file_name")
    add("--encoder", required=True, nargs="+", help="towers: files or names; several: an ensemble")
    add("--proposals", default="ground-truth", help='"ground-truth", "rpn", "detector", a COCO result list, JSON lines')
    add("--instances", help="COCO annotations whose boxes are the ground-truth proposals")
    add("--config", help="detector config for --proposals rpn or detector")
    add("--checkpoint", help="its weights")
    add_cfg_options(parser, "overrides of --config")
    add("--max-proposals", type=int, default=20, help="best-scored proposals kept")
    add("--detector-weight", type=float, default=0.0, help="power of the detector's scores")
    add("--views", nargs="+", default=["dense"], choices=VIEWS, help="how region vectors are made; several: their mean")
    add("--dense-mode", default="value", choices=DENSE_MODES, help="last block of the dense map")
    add("--dense-size", type=int, default=0, help="side of the dense input; 0: the tower's")
    add("--crop-context", type=float, default=1.2, help="side of crops over the longer side of boxes")
    add("--mask-modes", nargs="+", default=["hard"], choices=MASK_MODES, help="each is scored and written")
    add("--control", choices=["none", "text_shuffled"], default="none", help="exchange texts' vectors")
    add("--temperature", type=float, default=50.0, help="of the scores")
    add("--reading", choices=READINGS, default="expression", help="how an expression is read")
    add(
        "--parser",
        default="auto",
        help="auto (spaCy where the extra `parse` is installed, else rules), rules, or a spaCy pipeline",
    )
    add("--answers", choices=["one", "all"], default="one", help="all: also sentences of none and many")
    add("--margin", action="store_true", help="--answers all: scores are over those of the background")
    add_presence(parser, "--answers all: ")
    add("--nms", type=float, default=0.7, help="--answers all: IoU over which the weaker box goes")
    add("--subtract", help="captions (a training set) whose mean score is taken off each region's")
    add("--subtract-count", type=int, default=500, help="captions drawn from it")
    add("--seed", type=int, default=0, help="of that draw")
    add("--cache", type=Path, help="folder where region vectors are kept for further runs")
    add_device(parser)
    add("--limit", type=int, default=0, help="first so many sentences only")
    add_out(parser, "work_dirs/ground.jsonl", "predictions, metrics beside")


def run(args: argparse.Namespace) -> None:
    """Ground, and print the numbers of each mask mode."""
    from smartclip_det.apis.grounding import GroundOptions, ground_expressions

    result = ground_expressions(GroundOptions(**vars(args)))
    for mode, path in result.files.items():
        told = f"{mode} ({args.proposals} proposals): {path}"
        if args.answers == "all":
            print(f"{told}; score it with smartclip-det evaluate grefcoco")
        else:
            print(f"{told}\n{format_metrics(result.metrics[mode])}")
    for name in ("chance", "best_possible"):
        if name in result.metrics:
            print(f"{name}\n{format_metrics(result.metrics[name])}")
    left = f", {n} without exactly one target left out" if (n := result.counts["left_out"]) else ""
    print(f"{result.counts['sentences']} sentences{left}. Written: {args.out.with_suffix('.metrics.json')}")
