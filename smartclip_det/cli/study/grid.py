"""A declared grid on the toy world: alignments x seeds, and heads trained with masks on and off; tables with spread.

    smartclip-det study grid --seeds 0 1 2                      # all variants; long: leave it in the background
    smartclip-det study grid --variants clip smartclip --detector 0             # the two alignments and their probes
    smartclip-det study grid --variants clip smartclip --heads clip_off smartclip_hard smartclip_off --policies

clip and smartclip are trained from nothing, on equal captions and steps. The two-stage variants (two_stage_clip,
two_stage_smartclip: the published order; longclip, keep_*) share a seed's pretrained towers. What is done is not done
again: run the same command to go on, or add seeds. study.md has means, spreads, and the differences within seeds with
their interval; study.json has every number.
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
    add("--steps", type=int, default=2000, help="of each alignment from nothing")
    add("--pretrain", type=int, default=10, help="two-stage variants: epochs of CLIP from nothing")
    add("--align", type=int, default=3, help="two-stage variants: epochs of the second stage")
    add("--variants", nargs="+", help="alignments; default: all")
    add("--heads", nargs="*", help="detector heads of those; default: all")
    add("--policies", action="store_true", help="test one head under further policies")
    add("--pretrained", type=Path, help="folder of an earlier study whose pretrained towers are used")
    add("--detector", type=int, default=1, help="epochs of each detector; 0 for none")


def run(args: argparse.Namespace) -> None:
    """Run the grid."""
    from smartclip_det.studies.grid import GridOptions, run_grid

    run_grid(GridOptions(**{k: v for k, v in vars(args).items() if k not in ("variants", "heads") or v is not None}))
