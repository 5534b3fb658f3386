"""Build the model and optimizer of a config on this machine, and report config keys that no class accepts.

smartclip-det check config CONFIG --cfg-options towers.arch=SmartCLIP-B-16
"""

from __future__ import annotations

import argparse

from smartclip_det.cli.options import add_cfg_options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("config", help="config file, or the name of a packaged config")
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    """Build the config and print what was built."""
    from smartclip_det.apis.checking import check_config

    print(check_config(args.config, args.cfg_options))
