"""A declared grid on the toy world: alignments x seeds, and heads trained with masks on and off; a table with spread.

    smartclip-det study grid --seeds 0 1 2                      # long: leave it in the background
    smartclip-det study grid --seeds 0 1 2 --pretrain 4 --align 2 --detector 0      # alignment and probe alone

Within a seed all variants share the pretrained towers, and only what differs is trained. What is done is not done
again: run the same command to go on, or add seeds. The table is written as study.json and study.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import add_out


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of weights, order and captions")
    add("--data", type=Path, default=Path("data/toy"), help="the world, one for all seeds")
    add_out(parser, "work_dirs/study", "folder that is written to")
    add("--pretrain", type=int, default=8, help="epochs of CLIP from nothing")
    add("--align", type=int, default=3, help="epochs of each alignment")
    add("--variants", nargs="+", help="alignments; default: all")
    add("--heads", nargs="*", help="detector heads of those; default: all")
    add("--policies", action="store_true", help="test one head under further policies")
    add("--pretrained", type=Path, help="folder of an earlier study whose pretrained towers are used")
    add("--detector", type=int, default=1, help="epochs of each detector; 0 for none")


def run(args: argparse.Namespace) -> None:
    """Run the grid."""
    from smartclip_det.studies.grid import GridOptions, run_grid

    run_grid(GridOptions(**{k: v for k, v in vars(args).items() if k not in ("variants", "heads") or v is not None}))
