"""Print versions, platform, device and an operator check: what a bug report needs.

    smartclip-det env

Exit code 0 if every operator ran or MMDetection is not installed; otherwise 2, with the command that repairs it.
"""

from __future__ import annotations

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    from smartclip_det.utils.env import main

    return main()
