"""Test one detector on many data set folders (ODinW), each with the class names of its own annotation file.

    smartclip-det study multi-dataset CONFIG CHECKPOINT --root data/odinw --prompt-names prompt_names.json

The mean over folders is written to folders.json, with the texts each folder's names were encoded as. Finished folders
are not repeated: run the same command again to resume.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import add_cfg_options, add_out


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add("config", help="config whose data set takes its class names from the annotations")
    add("checkpoint", help="detector checkpoint")
    add("--root", type=Path, required=True, help="folder that contains the data sets")
    add("--ann", default="annotations_without_background.json", help="file name of the annotations")
    add("--part", default="", help="use only annotation files below a folder of this name, e.g. valid or test")
    add("--prompt-names", help="JSON: {FOLDER: {class: text used in the prompts}}")
    add_out(parser, "work_dirs/folders", "output folder")
    add_cfg_options(parser, "overrides for every folder")


def run(args: argparse.Namespace) -> None:
    """Test and print the table."""
    from smartclip_det.studies.multi_dataset import FolderOptions, measure_folders

    print(measure_folders(FolderOptions(**vars(args))))
