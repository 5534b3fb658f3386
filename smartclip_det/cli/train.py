r"""Train a model from an MMEngine config.

smartclip-det train ov_coco/open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco \
        --cfg-options data_root=/data/coco/ towers.checkpoint=smartclip_b16.pt
smartclip-det train CONFIG --resume            # resume from the last checkpoint in the work folder
smartclip-det train CONFIG --amp               # bf16 if the device supports it
smartclip-det train CONFIG --amp-dtype fp16    # fp16 with loss scaling, on CUDA
bash tools/dist_train.sh CONFIG 8              # several processes on one machine
"""

from __future__ import annotations

import argparse

from smartclip_det.cli.options import add_run
from smartclip_det.core.words import AMP_DTYPES


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options; names follow MMDetection's tools."""
    add_run(parser)
    parser.add_argument(
        "--resume", nargs="?", const="auto", help="checkpoint to resume from; without a value, the last one"
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision")
    parser.add_argument(
        "--amp-dtype", choices=AMP_DTYPES, default="auto", help="mixed-precision type; auto: bf16 if supported"
    )
    parser.add_argument(
        "--auto-scale-lr", action="store_true", help="scale the learning rate with the global batch size"
    )


def run(args: argparse.Namespace) -> None:
    """Train the model."""
    from smartclip_det.apis.running import TrainOptions, train

    train(TrainOptions(**vars(args)))
