"""Test one detector on many data sets that lie in folders (ODinW), each with the names of its own annotation file.

    smartclip-det study multi-dataset CONFIG CHECKPOINT --root data/odinw --prompt-names prompt_names.json

The mean over folders is written as folders.json, with what each folder's names were encoded as. What is done is not
done again: run the same command to go on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import add_cfg_options, add_out


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add = parser.add_argument
    add("config", help="a config whose data set takes its names from the annotations")
    add("checkpoint", help="the weights")
    add("--root", type=Path, required=True, help="folder of data sets")
    add("--ann", default="annotations_without_background.json", help="file name of annotations")
    add("--part", default="", help="only files below a folder of this name, e.g. valid or test")
    add("--prompt-names", help="JSON: {FOLDER: {class: what stands in the prompts}}")
    add_out(parser, "work_dirs/folders", "folder that is written to")
    add_cfg_options(parser, "overrides for every folder")


def run(args: argparse.Namespace) -> None:
    """Test, and print the table."""
    from smartclip_det.studies.multi_dataset import FolderOptions, measure_folders

    print(measure_folders(FolderOptions(**vars(args))))
