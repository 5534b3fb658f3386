"""The whole story on the toy world: alignment, region probe, detection of never-labelled shapes, grounding, report.

    smartclip-det toy                      # what make toy runs
    smartclip-det toy --quick              # a small one of a few minutes: shows that all works, learns little
    smartclip-det toy --seed 1 --out work_dirs/toy_seed1

Every step is a public verb with a public config; its command is printed, and its output kept in OUT/logs. A step that
is done is not run again unless its command changed or an earlier step ran.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add = parser.add_argument
    add("--out", type=Path, help="folder of everything; default work_dirs/toy, or work_dirs/toy_quick")
    add("--data", type=Path, help="the world; default data/toy, or data/toy_quick")
    add("--seed", type=int, default=0, help="of world, weights, order and captions")
    add("--quick", action="store_true", help="a small world and short training")


def run(args: argparse.Namespace) -> None:
    """Tell the story."""
    from smartclip_det.studies.toy import ToyOptions, tell_story

    tell_story(ToyOptions(**vars(args)))
