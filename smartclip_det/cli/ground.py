r"""Zero-shot grounding of referring expressions: candidate boxes ranked by masked cosine.

    smartclip-det ground data/toy/refs/finetune_toy_val.json --images data/toy/images \
        --encoder work_dirs/toy/smartclip/epoch_1.pth --proposals ground-truth
    smartclip-det ground refs.jsonl --images train2014 --encoder smartclip_b16.pt --proposals detections.json \
        --instances instances.json --views crop blur --reading both --out pred.jsonl
    smartclip-det ground refs.jsonl --images train2014 --encoder smartclip_b16.pt --proposals detector \
        --config mm-grounding-dino.py --checkpoint mm-grounding-dino.pth --max-proposals 5 --detector-weight 0.5
    smartclip-det evaluate refcoco --ann refs.jsonl --pred pred.jsonl      # reproduces the metrics

Proposals: "ground-truth" (all target boxes in the file for an image, or all boxes of --instances), a COCO result list,
JSON lines of grounding predictions (re-ranks the boxes of any model), "rpn" with --config and --checkpoint of one of
our detectors, or "detector" with those of any MMDetection detector; detectors that take text get the expression. The
kind of proposals is in every output: results with different kinds are not comparable.

Readings: "expression" scores the whole expression with its mask; "chunks" scores each entity with its own mask and
combines them by locations and relations; "both" is the product. Sentences with no or several targets are skipped and
counted. With --answers all they are included, each box gets an independent score, and a threshold decides between none,
one and many:

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
    """Add the options of this verb."""
    add = parser.add_argument
    add("ann", help="expressions: JSON lines, MDETR json, or refs pickle")
    add("--split", help="split to use")
    add("--images", type=Path, required=True, help="image folder")
    add("--encoder", required=True, nargs="+", help="towers: files or names; several form an ensemble")
    add("--proposals", default="ground-truth", help='"ground-truth", "rpn", "detector", a COCO result list, JSON lines')
    add("--instances", help="COCO annotations that provide the ground-truth proposals")
    add("--config", help="detector config for --proposals rpn or detector")
    add("--checkpoint", help="weights of --config")
    add_cfg_options(parser, "overrides of --config")
    add("--max-proposals", type=int, default=20, help="proposals per image, by score")
    add("--detector-weight", type=float, default=0.0, help="exponent of the detector's scores")
    add(
        "--views",
        nargs="+",
        default=["dense"],
        choices=VIEWS,
        help="how region vectors are computed; several are averaged",
    )
    add("--dense-mode", default="value", choices=DENSE_MODES, help="mode of the last block for the dense map")
    add("--dense-size", type=int, default=0, help="side of the dense input; 0: the tower's input size")
    add("--crop-context", type=float, default=1.2, help="crop side relative to the longer box side")
    add("--mask-modes", nargs="+", default=["hard"], choices=MASK_MODES, help="mask modes to score and write")
    add("--control", choices=["none", "text_shuffled"], default="none", help="chance control: permute the text vectors")
    add("--temperature", type=float, default=50.0, help="temperature of the scores")
    add("--reading", choices=READINGS, default="expression", help="how an expression is read")
    add(
        "--parser",
        default="auto",
        help="auto (spaCy if the extra `parse` is installed, else rules), rules, or a spaCy pipeline",
    )
    add("--answers", choices=["one", "all"], default="one", help="all: include sentences with no or several targets")
    add("--margin", action="store_true", help="--answers all: score margin over the background")
    add_presence(parser, "--answers all: ")
    add("--nms", type=float, default=0.7, help="--answers all: NMS IoU threshold")
    add("--subtract", help="captions (of a training set) whose mean score is subtracted from each region's score")
    add("--subtract-count", type=int, default=500, help="captions sampled from --subtract")
    add("--seed", type=int, default=0, help="seed of that sample")
    add("--cache", type=Path, help="folder that caches region vectors for later runs")
    add_device(parser)
    add("--limit", type=int, default=0, help="use only the first N sentences")
    add_out(parser, "work_dirs/ground.jsonl", "predictions; metrics go to a .metrics.json of the same name")


def run(args: argparse.Namespace) -> None:
    """Ground the expressions and print the metrics of each mask mode."""
    from smartclip_det.apis.grounding import GroundOptions, ground_expressions

    result = ground_expressions(GroundOptions(**vars(args)))
    for mode, path in result.files.items():
        title = f"{mode} ({args.proposals} proposals): {path}"
        if args.answers == "all":
            print(f"{title}; score it with smartclip-det evaluate grefcoco")
        else:
            print(f"{title}\n{format_metrics(result.metrics[mode])}")
    for name in ("chance", "best_possible"):
        if name in result.metrics:
            print(f"{name}\n{format_metrics(result.metrics[name])}")
    left = f", {n} without exactly one target skipped" if (n := result.counts["left_out"]) else ""
    print(f"{result.counts['sentences']} sentences{left}. Written: {args.out.with_suffix('.metrics.json')}")
