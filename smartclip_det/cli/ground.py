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

from smartclip_det.cli.options import (
    Old,
    add_cfg_options,
    add_crop_context,
    add_dense,
    add_device,
    add_out,
    add_presence,
    add_views,
    filled,
    presence_of,
)
from smartclip_det.core.mask_modes import MASK_MODES
from smartclip_det.core.words import CONTROLS, READINGS
from smartclip_det.utils.cli import format_metrics

OLD = (Old("--checkpoint", "--encoder", unless=("--encoder",)), Old("--detector", "--checkpoint"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    expressions = parser.add_argument_group("expressions")
    add = expressions.add_argument
    add("ann", help="expressions: JSON lines, MDETR json, or refs pickle")
    add("--split", help="split to use")
    add("--images", type=Path, required=True, help="image folder")
    add("--answers", choices=["one", "all"], default="one", help="all: include sentences with no or several targets")
    add("--limit", type=int, default=0, help="use only the first N sentences")

    encoder = parser.add_argument_group("encoder and region vectors")
    add = encoder.add_argument
    add("--encoder", required=True, nargs="+", help="towers: files or names; several form an ensemble")
    add_device(encoder)
    add_views(encoder)
    add_dense(encoder)
    add_crop_context(encoder)
    add("--cache", type=Path, help="folder that caches region vectors for later runs")

    proposals = parser.add_argument_group("proposals")
    add = proposals.add_argument
    add("--proposals", default="ground-truth", help='"ground-truth", "rpn", "detector", a COCO result list, JSON lines')
    add("--instances", help="COCO annotations that provide the ground-truth proposals")
    add("--config", help="detector config for --proposals rpn or detector")
    add("--checkpoint", help="weights of --config")
    add_cfg_options(proposals, "overrides of --config")
    add("--max-proposals", type=int, default=20, help="proposals per image, by score")
    add("--detector-weight", type=float, default=0.0, help="exponent of the detector's scores")

    add = parser.add_argument_group("reading of the expressions").add_argument
    add("--reading", choices=READINGS, default="expression", help="how an expression is read")
    add(
        "--parser",
        default="auto",
        help="auto (spaCy if the extra `parse` is installed, else rules), rules, or a spaCy pipeline",
    )
    add("--control", choices=CONTROLS, default="none", help="chance control: permute the text vectors")
    add("--subtract", help="captions (of a training set) whose mean score is subtracted from each region's score")
    add("--subtract-count", type=int, default=500, help="captions sampled from --subtract")
    add("--seed", type=int, default=0, help="seed of that sample")

    scores = parser.add_argument_group("scores")
    add = scores.add_argument
    add("--mask-modes", nargs="+", default=["hard"], choices=MASK_MODES, help="mask modes to score and write")
    add("--temperature", type=float, default=50.0, help="temperature of the scores")
    add("--margin", action="store_true", help="--answers all: score margin over the background")
    add_presence(scores, "--answers all: ")
    add("--nms", type=float, default=0.7, help="--answers all: NMS IoU threshold")

    output = parser.add_argument_group("output")
    add_out(output, "work_dirs/ground.jsonl", "predictions; metrics go to a .metrics.json of the same name")


def run(args: argparse.Namespace) -> None:
    """Ground the expressions and print the metrics of each mask mode."""
    from smartclip_det.apis.grounding import ground_expressions
    from smartclip_det.apis.grounding_options import ExpressionOptions, GroundOptions, ProposalOptions, ReadingOptions
    from smartclip_det.apis.region_encoding import RegionEncoding
    from smartclip_det.core.scoring_policy import ScoringPolicy

    options = filled(
        GroundOptions,
        args,
        expressions=filled(ExpressionOptions, args),
        encoder=filled(RegionEncoding, args, towers=[{"checkpoint": c} for c in args.encoder]),
        proposals=filled(ProposalOptions, args, source=args.proposals, limit=args.max_proposals),
        reading=filled(ReadingOptions, args),
        policy=ScoringPolicy(temperature=args.temperature, **presence_of(args)),
    )
    result = ground_expressions(options)
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
