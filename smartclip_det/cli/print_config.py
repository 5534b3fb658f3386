"""Print a config after inheritance and overrides; --check builds it and reports keys that no class accepts.

smartclip-det print-config ov_coco/open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco
smartclip-det print-config CONFIG --check --cfg-options towers.arch=SmartCLIP-B-16
"""

from __future__ import annotations

import argparse

from smartclip_det.cli.options import add_cfg_options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("config", help="config file, or the name of a packaged config")
    parser.add_argument("--check", action="store_true", help="build the model and the optimizer instead")
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    """Print the config, or check it."""
    if args.check:
        from smartclip_det.apis.checking import check_config

        print(check_config(args.config, args.cfg_options))
        return
    from smartclip_det.engine.config import load_config

    print(load_config(args.config, args.cfg_options).pretty_text)
