"""Build a config's model and optimizer on this machine, and report keys that no class takes.

smartclip-det check config CONFIG --cfg-options towers.arch=SmartCLIP-B-16
"""

from __future__ import annotations

import argparse

from smartclip_det.cli.options import add_cfg_options


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("config", help="config file, or the name of one of the package")
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    """Build, and say what was built."""
    from smartclip_det.apis.checking import check_config

    print(check_config(args.config, args.cfg_options))
