"""Test one detector on many data set folders (ODinW), each with the class names of its own annotation file."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError, unknown_names
from smartclip_det.formats.json_files import read_json
from smartclip_det.protocols.stamp import protocol_stamp, write_results
from smartclip_det.utils.cfg_options import format_options
from smartclip_det.utils.files import write_whole
from smartclip_det.utils.steps import Step, StepRunner, verb, write_json


@dataclass(frozen=True)
class FolderOptions:
    """Options of the multi-dataset test.

    Attributes:
        config: config whose data set takes its class names from the annotations.
        checkpoint: detector checkpoint.
        root: folder that contains the data sets.
        ann: file name of the annotations.
        part: use only annotation files below a folder of this name.
        prompt_names: JSON: ``{FOLDER: {class: text used in the prompts}}``.
        out: output folder.
        cfg_options: overrides for every folder.
    """

    config: str
    checkpoint: str
    root: Path
    ann: str = "annotations_without_background.json"
    part: str = ""
    prompt_names: str | None = None
    out: Path = Path("work_dirs/folders")
    cfg_options: Mapping[str, Any] | None = None


def find_folders(root: Path, ann: str, part: str) -> dict[str, Path]:
    """Find annotation files: data set name (first folder below the root) -> file.

    Raises:
        UserError: if there is none, or several for one data set.
    """
    files: dict[str, Path] = {}
    for path in sorted(root.rglob(ann)):
        inner = path.relative_to(root).parts[:-1]
        if not inner or (part and part not in inner):
            continue
        if inner[0] in files:
            raise UserError(
                f"{inner[0]} has {files[inner[0]]} and {path}. Choose with --part, e.g. --part {inner[-1]}."
            )
        files[inner[0]] = path
    if not files:
        raise UserError(f"No {ann} in folders below {root}{f' (part {part})' if part else ''}.")
    return files


def _step(task: FolderOptions, name: str, ann: Path, prompt_names: Mapping[str, str]) -> Step:
    """Return the test step of one folder; images are in the folder of the annotations."""
    out = task.out / f"{name}.json"
    options: dict[str, Any] = {
        **(task.cfg_options or {}),
        "test_dataloader.dataset.data_root": f"{ann.parent}/",
        "test_dataloader.dataset.ann_file": ann.name,
        "test_dataloader.dataset.data_prefix.img": "",
        "test_evaluator.data_root": f"{ann.parent}/",
        "test_evaluator.ann_file": ann.name,
    }
    if prompt_names:
        texts = task.out / f"{name}.prompt_names.json"
        write_json(texts, dict(prompt_names))
        options["test_dataloader.dataset.prompt_names"] = str(texts)
    command = verb(
        "test",
        task.config,
        task.checkpoint,
        "--work-dir",
        str(task.out / "runs" / name),
        "--out",
        str(out),
        *format_options(options),
    )
    return Step(name, command, [out.with_suffix(".metrics.json")])


def measure_folders(task: FolderOptions) -> str:
    """Test each folder and write the mean to ``folders.json`` and ``folders.md``.

    Returns:
        The results as a Markdown table.

    Raises:
        UserError: for a folder without data sets, unknown folder names, or a failed test.
    """
    if not task.root.is_dir():
        raise UserError(f"No folder at {task.root}.")
    folders = find_folders(task.root, task.ann, task.part)
    prompt_names = read_json(task.prompt_names, "file of prompt names") if task.prompt_names else {}
    unknown = [n for n in prompt_names if n not in folders]
    if unknown:
        raise unknown_names("folders of --prompt-names", unknown, folders, "Keys must be folders below --root.")
    task.out.mkdir(parents=True, exist_ok=True)
    for number, (name, ann) in enumerate(folders.items(), 1):
        print(f"folder {number} of {len(folders)}", flush=True)
        step = _step(task, name, ann, prompt_names.get(name, {}))
        # One runner per folder: folders are independent, and a GPU runs one test at a time.
        StepRunner(task.out / "steps" / name).run_stages([[step]])
    by_folder = {n: read_json(task.out / f"{n}.metrics.json", "result file")["metrics"] for n in folders}
    keys = [k for k in next(iter(by_folder.values())) if all(k in m for m in by_folder.values())]
    mean = {k: statistics.fmean(m[k] for m in by_folder.values()) for k in keys}
    stamp = protocol_stamp(
        "folders", root=str(task.root), folders=list(folders), config=task.config, prompt_names=prompt_names
    )
    write_results(task.out / "folders.json", stamp, mean, by_folder=by_folder)
    rows = [f"| {n} | {m['bbox_mAP']:.4f} | {m['bbox_mAP_50']:.4f} |" for n, m in [*by_folder.items(), ("mean", mean)]]
    table = "\n".join(["| data set | bbox_mAP | bbox_mAP_50 |", "|---|---|---|", *rows]) + "\n"
    write_whole(task.out / "folders.md", table)
    return table
