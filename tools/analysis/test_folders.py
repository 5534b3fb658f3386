#!/usr/bin/env python
"""Test one detector on many data sets that lie in folders (ODinW), each with the names of its own annotation file.

    python tools/analysis/test_folders.py CONFIG CHECKPOINT --root data/odinw --prompt-names prompt_names.json

The mean over folders is written as folders.json, with what each folder's names were encoded as. What is done is not
done again: run the same command to go on.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import DictAction

from smartclip_det.core.errors import UserError, unknown_names
from smartclip_det.formats.json_files import read_json
from smartclip_det.protocols.stamp import protocol_stamp, write_results
from smartclip_det.utils.cli import run_tool
from smartclip_det.utils.files import write_whole
from smartclip_det.utils.steps import Step, StepRunner, settings, write_json


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a config whose data set takes its names from the annotations")
    parser.add_argument("checkpoint")
    parser.add_argument("--root", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--ann", default="annotations_without_background.json", help="file name of annotations")
    parser.add_argument("--part", default="", help="only files below a folder of this name, e.g. valid or test")
    parser.add_argument("--prompt-names", help="JSON: {FOLDER: {class: what stands in the prompts}}")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/folders"))
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="overrides for every folder")
    return parser.parse_args()


def find_folders(root: Path, ann: str, part: str) -> dict[str, Path]:
    """Annotation file by name of data set (the first folder below the root).

    Raises:
        UserError: when there is none, or two of one data set.
    """
    found: dict[str, Path] = {}
    for path in sorted(root.rglob(ann)):
        inner = path.relative_to(root).parts[:-1]
        if not inner or (part and part not in inner):
            continue
        if inner[0] in found:
            raise UserError(f"{inner[0]} has {found[inner[0]]} and {path}: choose by --part, e.g. --part {inner[-1]}.")
        found[inner[0]] = path
    if not found:
        raise UserError(f"No {ann} in folders below {root}{f' (part {part})' if part else ''}.")
    return found


def test_step(args: argparse.Namespace, name: str, ann: Path, prompt_names: Mapping[str, str]) -> Step:
    """The test of one folder; images lie beside the annotations."""
    out = args.out / f"{name}.json"
    options: dict[str, Any] = {
        **(args.cfg_options or {}),
        "test_dataloader.dataset.data_root": f"{ann.parent}/", "test_dataloader.dataset.ann_file": ann.name,
        "test_dataloader.dataset.data_prefix.img": "", "test_evaluator.data_root": f"{ann.parent}/",
        "test_evaluator.ann_file": ann.name,
    }  # fmt: skip
    if prompt_names:
        texts = args.out / f"{name}.prompt_names.json"
        write_json(texts, dict(prompt_names))
        options["test_dataloader.dataset.prompt_names"] = texts
    command = ["tools/test.py", args.config, args.checkpoint, "--work-dir", str(args.out / "runs" / name), "--out",
               str(out), *settings(options)]  # fmt: skip
    return Step(name, command, [out.with_suffix(".metrics.json")])


def main() -> None:
    """Test each folder and write the mean."""
    args = parse_args()
    if not args.root.is_dir():
        raise UserError(f"No folder at {args.root}.")
    folders = find_folders(args.root, args.ann, args.part)
    prompt_names = read_json(args.prompt_names, "file of prompt names") if args.prompt_names else {}
    foreign = [n for n in prompt_names if n not in folders]
    if foreign:
        raise unknown_names("folders of --prompt-names", foreign, folders, "Keys are folders below --root.")
    args.out.mkdir(parents=True, exist_ok=True)
    for number, (name, ann) in enumerate(folders.items(), 1):
        print(f"folder {number} of {len(folders)}", flush=True)
        step = test_step(args, name, ann, prompt_names.get(name, {}))
        # A runner of its own: no folder waits for another one, and a GPU serves one at a time.
        StepRunner(args.out / "steps" / name).run_stages([[step]])
    by_folder = {n: read_json(args.out / f"{n}.metrics.json", "result file")["metrics"] for n in folders}
    keys = [k for k in next(iter(by_folder.values())) if all(k in m for m in by_folder.values())]
    mean = {k: statistics.fmean(m[k] for m in by_folder.values()) for k in keys}
    stamp = protocol_stamp("folders", root=str(args.root), folders=list(folders), config=args.config,
                           prompt_names=prompt_names)  # fmt: skip
    write_results(args.out / "folders.json", stamp, mean, by_folder=by_folder)
    rows = [f"| {n} | {m['bbox_mAP']:.4f} | {m['bbox_mAP_50']:.4f} |" for n, m in [*by_folder.items(), ("mean", mean)]]
    table = "\n".join(["| data set | bbox_mAP | bbox_mAP_50 |", "|---|---|---|", *rows]) + "\n"
    write_whole(args.out / "folders.md", table)
    print(table)


if __name__ == "__main__":
    run_tool(main)
