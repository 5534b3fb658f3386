#!/usr/bin/env python
"""Train by an MMEngine config.

python tools/train.py configs/ov_coco/open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco.py \
        --cfg-options data_root=/data/coco/ towers.checkpoint=smartclip_b16.pt
python tools/train.py CONFIG --resume            # go on from the last checkpoint of the work folder
python tools/train.py CONFIG --amp               # fp16 on CUDA, bf16 on a CPU
bash tools/dist_train.sh CONFIG 8                # several processes on one machine
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from mmengine.runner import Runner
from mmengine.runner._flexible_runner import FlexibleRunner

from smartclip_det.core.errors import UserError
from smartclip_det.engine.atomic_files import last_good_checkpoint
from smartclip_det.engine.config import load_config
from smartclip_det.engine.launch import (
    enable_amp,
    enable_auto_scale,
    log_closing,
    log_opening,
    parse_run,
    prepare,
    refuse_foreign_checkpoint,
    run_parser,
    unwrapped,
)
from smartclip_det.utils.cli import run_tool


def parse_args() -> argparse.Namespace:
    """The command line: MMDetection's habits, nothing more."""
    parser = run_parser(__doc__)
    parser.add_argument("--resume", nargs="?", const="auto", help="checkpoint to go on from; alone: the last one")
    parser.add_argument("--amp", action="store_true", help="mixed precision")
    parser.add_argument("--auto-scale-lr", action="store_true", help="scale the rate to the global batch size")
    return parse_run(parser)


def main() -> None:
    """Build the runner and train."""
    args = parse_args()
    config = load_config(args.config, args.cfg_options)
    prepare(config, args.config, args.work_dir, args.launcher)
    if args.amp:
        enable_amp(config)
    if args.auto_scale_lr:
        enable_auto_scale(config)
    if args.resume and args.resume != "auto" and not Path(args.resume).exists():
        raise UserError(f"No checkpoint at {args.resume} to resume from.")
    if args.resume:
        config.resume = True
        config.load_from = str(last_good_checkpoint(config.work_dir)) if args.resume == "auto" else args.resume
    if "strategy" in config and config.strategy.type != "SingleDeviceStrategy" and not torch.cuda.is_available():
        raise UserError(
            f"strategy {config.strategy.type} needs CUDA devices; here are none. Leave it out (DDP runs on CPUs too)."
        )
    # FSDP and DeepSpeed are strategies, which MMEngine's plain runner does not take.
    runner = (FlexibleRunner if config.get("strategy") else Runner).from_cfg(config)
    if args.resume and isinstance(runner.model, torch.nn.Module):
        refuse_foreign_checkpoint(unwrapped(runner.model), config.load_from)
    log_opening(runner, args.config)
    try:
        runner.train()
    except RuntimeError as error:
        if args.amp and "not implemented for 'BFloat16'" in str(error):
            raise UserError(
                f"This model has an operator without bf16 on this device ({error}); train without --amp."
            ) from error
        raise
    log_closing(runner, args.config, args.cfg_options)


if __name__ == "__main__":
    run_tool(main)
