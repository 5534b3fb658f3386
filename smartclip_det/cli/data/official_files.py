"""Options of the verbs that make protocol files from official annotations."""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.core.errors import UserError


def add_sources(parser: argparse.ArgumentParser, train: str, val: str) -> None:
    """Add ``--train`` and ``--val`` with the names of the official files, and ``--out``."""
    parser.add_argument("--train", type=Path, help=train)
    parser.add_argument("--val", type=Path, help=val)
    parser.add_argument("--out", type=Path, required=True, help="output folder; existing files are kept")


def check_sources(args: argparse.Namespace) -> None:
    """Raise :class:`UserError` if neither file is given."""
    if not args.train and not args.val:
        raise UserError("Give --train, --val or both.")
