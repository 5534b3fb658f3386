"""Run a grid on the toy world: alignments x seeds, and heads trained with masks on and off.

    smartclip-det study grid --seeds 0 1 2                      # all variants; takes long, run it in the background
    smartclip-det study grid --variants clip smartclip --detector 0             # the two alignments and their probes
    smartclip-det study grid --variants clip smartclip --heads clip_off smartclip_hard smartclip_off --policies

clip and smartclip are trained from scratch, on the same captions for the same number of steps. The two-stage variants
(two_stage_clip, two_stage_smartclip: the published order; longclip, keep_*) share a seed's pretrained towers. Finished
runs are not repeated: run the same command again to resume, or add seeds. study.md has means, spreads, and within-seed
differences with their intervals; study.json has every number.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import add_out


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of weights, data order and captions")
    add("--data", type=Path, default=Path("data/toy"), help="toy world, shared by all seeds")
    add_out(parser, "work_dirs/study", "output folder")
    add("--steps", type=int, default=2000, help="steps of each alignment from scratch")
    add("--pretrain", type=int, default=10, help="two-stage variants: epochs of CLIP pretraining from scratch")
    add("--align", type=int, default=3, help="two-stage variants: epochs of the second stage")
    add("--variants", nargs="+", help="alignment variants; default: all")
    add("--heads", nargs="*", help="detector heads to train; default: all")
    add("--policies", action="store_true", help="also test one head with other scoring policies")
    add("--pretrained", type=Path, help="folder of an earlier study whose pretrained towers are reused")
    add("--detector", type=int, default=1, help="epochs of each detector; 0: no detectors")


def run(args: argparse.Namespace) -> None:
    """Run the grid."""
    from smartclip_det.studies.grid import GridOptions, run_grid

    run_grid(GridOptions(**{k: v for k, v in vars(args).items() if k not in ("variants", "heads") or v is not None}))
