"""Write the report and the summary of a finished run of smartclip-det toy.

    smartclip-det study toy-report --folder work_dirs/toy

Reads the JSON files of the steps, draws images with the trained detector, and writes report.html (self-contained) and
summary.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("--folder", type=Path, default=Path("work_dirs/toy"), help="output folder of smartclip-det toy")


def run(args: argparse.Namespace) -> None:
    """Write the report."""
    from smartclip_det.studies.toy_report import report_toy

    report_toy(args.folder)
