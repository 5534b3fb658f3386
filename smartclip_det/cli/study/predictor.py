r"""Measure the options of the training-free predictor, one at a time, on annotated images.

    smartclip-det study predictor --encoder work_dirs/toy/smartclip/iter_2000.pth --limit 150 \
        --ann data/toy/annotations/instances_val.json --images data/toy/images/val \
        --split-file data/toy/annotations/split.json --templates "{article} {}"
    smartclip-det study predictor --encoder smartclip-b16 --ann instances_val2017.json --images val2017 \
        --boxes torchvision --limit 500

The first row is the predictor with its defaults; each other row changes one option to another value. The control gives
each name the text of another one. Several encoders, such as towers of several seeds, give means; the JSON has the value
of each. Boxes: those of the annotations, a box source as in smartclip-det demo, or with --config and --checkpoint the
proposals of an open-vocabulary detector.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import (
    add_cfg_options,
    add_device,
    add_out,
    add_templates,
    at_least,
    filled,
    templates_of,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add("--encoder", nargs="+", required=True, help="towers: files or names; several are averaged")
    add("--ann", type=Path, required=True, help="COCO annotations")
    add("--images", type=Path, required=True, help="image folder")
    add("--split-file", help="JSON with base and novel names; default: those of OV-COCO")
    add("--boxes", default="ground-truth", help='"ground-truth", or a box source: torchvision, a file, ...')
    add("--config", help="open-vocabulary detector that proposes the boxes instead")
    add("--checkpoint", help="weights of --config")
    add_cfg_options(parser, "overrides of --config")
    add("--max-boxes", type=at_least(1), default=100, help="boxes per image, best first")
    add_templates(parser)
    add("--only", nargs="+", default=[], help="measure only settings whose name contains one of these")
    add("--skip", type=at_least(0), default=0, help="leave out the first N images, for a check on other images")
    add("--limit", type=at_least(0), default=0, help="use only the first N of the other images; 0: all")
    add_device(parser)
    add_out(parser, "work_dirs/predictor_options.json", "JSON output")


def run(args: argparse.Namespace) -> None:
    """Measure, print and write the table."""
    from smartclip_det.studies.predictor_options import PredictorStudyOptions, measure_predictor, rows_of

    table, path = measure_predictor(filled(PredictorStudyOptions, args, templates=templates_of(args.templates)))
    print(f"| setting | base | novel | mAP | better of {len(args.encoder)} |\n|---|---|---|---|---|")
    for name, means, better in rows_of(table):
        # -1: no object of these names.
        cells = ("-" if v < 0 else f"{100 * v:.1f}" for v in means.values())
        print(f"| {name} | " + " | ".join(cells) + f" | {better} |")
    print(f"written: {path}")
