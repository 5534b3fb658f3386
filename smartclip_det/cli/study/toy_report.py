"""The report and the summary of a finished run of smartclip-det toy.

    smartclip-det study toy-report --folder work_dirs/toy

Reads the JSON files that the steps wrote, draws pictures with the trained detector, and writes report.html (one file,
no other needed) and summary.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("--folder", type=Path, default=Path("work_dirs/toy"), help="what smartclip-det toy wrote to")


def run(args: argparse.Namespace) -> None:
    """Report."""
    from smartclip_det.studies.toy_report import report_toy

    report_toy(args.folder)
