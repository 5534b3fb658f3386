"""Run the full pipeline on the toy world: alignment, region probe, detection of novel shapes, grounding, report.

    smartclip-det toy                      # what make toy runs
    smartclip-det toy --quick              # a small run of a few minutes: a smoke test, too short to learn much
    smartclip-det toy --seed 1 --out work_dirs/toy_seed1                  # another world, other weights
    smartclip-det toy --seed 1 --world-seed 0 --out work_dirs/toy_seed1   # other weights on the same world

Every step is a public verb with a public config; its command is printed and its output logged to OUT/logs. Finished
steps are skipped unless their command changed or an earlier step ran again.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add("--out", type=Path, help="output folder; default work_dirs/toy, or work_dirs/toy_quick")
    add("--data", type=Path, help="toy world; default data/toy, or data/toy_quick")
    add("--seed", type=int, default=0, help="seed of the world, weights, data order and captions")
    add("--world-seed", type=int, help="seed of the world, if it is not --seed")
    add("--quick", action="store_true", help="small world and short training")


def run(args: argparse.Namespace) -> None:
    """Run the pipeline."""
    from smartclip_det.studies.toy import ToyOptions, tell_story

    tell_story(ToyOptions(**vars(args)))
