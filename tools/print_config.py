#!/usr/bin/env python
"""Print a config after inheritance and overrides; --check builds it and reports keys that no class takes.

python tools/print_config.py configs/ov_coco/open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco.py
python tools/print_config.py CONFIG --check --cfg-options towers.arch=SmartCLIP-B-16
"""

from __future__ import annotations

import argparse

from mmengine.config import DictAction
from mmengine.registry import init_default_scope

from smartclip_det.core.errors import UserError
from smartclip_det.engine.config import fit_norm_layers, load_config
from smartclip_det.utils.cli import run_tool


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config file")
    parser.add_argument("--check", action="store_true", help="build the model and the optimizer wrapper")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="overrides, key=value, dots for nesting")
    return parser.parse_args()


def main() -> None:
    """Print or check."""
    args = parse_args()
    config = load_config(args.config, args.cfg_options)
    if not args.check:
        print(config.pretty_text)
        return
    from mmdet.registry import MODELS
    from mmengine.optim import build_optim_wrapper

    from smartclip_det import parts  # noqa: F401 (registers everything)

    fit_norm_layers(config, distributed=False)
    init_default_scope(config.get("default_scope", "mmdet"))
    try:
        model = MODELS.build(config.model)
        build_optim_wrapper(model, config.optim_wrapper)
    except TypeError as error:
        raise UserError(f"{args.config}: {error}") from error
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    print(f"{args.config}: builds {type(model).__name__}, {trained:,} of {total:,} parameters trained.")


if __name__ == "__main__":
    run_tool(main)
