"""Whole training runs of the GPU check, with data loading: killed and resumed, and under torchrun with FSDP.

Each is a separate process, started like a user's run, on generated images with captions.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from smartclip_det.formats.json_lines import read_json_lines
from smartclip_det.models.towers.config import architecture
from smartclip_det.utils.cfg_options import format_options
from smartclip_det.utils.parallel import available_cores
from smartclip_det.utils.steps import python_path, verb

RECIPE = "smartclip_align/smartclip-b16_1024-3e_sharegpt4v.py"
SHARDED = "smartclip_align/smartclip-b16_fsdp_1024-3e_sharegpt4v.py"
#: Steps between checkpoints of the killed run, and total steps.
INTERVAL, STEPS = 4, 24


def whole_run(arch: str, device: str, batch: int) -> dict[str, Any]:
    """``smartclip-det train`` with the published recipe: killed after a checkpoint, resumed, and run to the end.

    Returns:
        ``killed_after``, final ``steps``, ``images_per_second`` of the resumed part (without its first three steps),
        the loader's share of that time, and whether it ``passed``.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pairs(root / "pairs", 2 * batch, architecture(arch).image_size)
        command = verb("train", RECIPE, "--work-dir", str(root / "run"), *format_options(settings(root, arch, batch)))
        killed = run_and_kill(command, device, root)
        log = run_to_end([*command, "--resume"], device, root)
        rows = [r for r in progress(root / "run") if r["step"] > killed]
    steady = rows[3:] or rows
    seconds = sum(r["time"] for r in steady)
    done = max((r["step"] for r in rows), default=0)
    return {
        "killed_after": killed,
        "steps": done,
        "images_per_second": batch * len(steady) / seconds if seconds else 0.0,
        "loader_share": sum(r["data_time"] for r in steady) / seconds if seconds else 0.0,
        "passed": killed > 0 and done == STEPS,
        **({} if done == STEPS else {"log": log[-2000:]}),
    }


def torchrun(arch: str, device: str, batch: int) -> dict[str, Any]:
    """The recipe under torchrun with FSDP, one process per GPU; one process (gloo) on a CPU."""
    processes = 1 if device == "cpu" else torch.cuda.device_count()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pairs(root / "pairs", 2 * batch * processes, architecture(arch).image_size)
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [*launch, *verb("train", SHARDED, "--work-dir", str(root / "run"), "--launcher", "pytorch")]
        given = {**settings(root, arch, batch * processes), "train_cfg.max_epochs": 2, "param_scheduler.end": 4}
        log = run_to_end([*command, *format_options(given)], device, root)
        rows = progress(root / "run")
        saved = (root / "run" / "last_checkpoint").is_file()
    passed = saved and len(rows) == 4 and all(np.isfinite(r["loss"]) for r in rows)
    return {
        "processes": processes,
        "losses": [r["loss"] for r in rows],
        "passed": passed,
        **({} if passed else {"log": log[-2000:]}),
    }


def settings(root: Path, arch: str, batch: int) -> dict[str, Any]:
    """Config overrides that run the recipe on generated pairs."""
    config = architecture(arch)
    workers = max(1, available_cores() // 2)
    loaders = {"num_workers": workers, "persistent_workers": True} if workers > 1 else {"num_workers": 1}
    data = {"ann_file": f"{root}/pairs", "data_root": "", "image_size": config.image_size}
    return {
        "towers.arch": arch,
        "towers.mask_pad": "ignore",
        "towers.stretch": False,
        "global_batch_size": batch,
        **{f"{part}_dataloader.dataset.{k}": v for part in ("train", "val") for k, v in data.items()},
        "train_dataloader.dataset.skip": 0,
        "train_dataloader.dataset.context_length": config.context_length,
        **{f"train_dataloader.{k}": v for k, v in loaders.items()},
        "val_dataloader.dataset.indices": 2,
        "val_dataloader.num_workers": 0,
        "val_evaluator.scoring": "hard",
        "default_hooks.checkpoint.interval": INTERVAL,
        "default_hooks.logger.interval": 1,
        "param_scheduler.warmup": 2,
        "param_scheduler.end": STEPS,
        # Two steps per epoch.
        "train_cfg.max_epochs": STEPS // 2,
        "train_cfg.val_begin": 10 * STEPS,
    }


def write_pairs(folder: Path, count: int, side: int) -> None:
    """Write generated images of about COCO's size as JPEG, each with a caption of two sentences."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for n in range(count):
        cells = rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)
        size = (max(side, 640), max(side, 480)) if side > 100 else (side, side)
        Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC).save(folder / f"{n:05d}.jpg", quality=90)
        text = f"Picture number {n} shows soft spots of colour. The spot in its corner is of kind {n % 7}."
        (folder / f"{n:05d}.txt").write_text(text, encoding="utf-8")


def environment(device: str) -> Mapping[str, str]:
    """Environment of a run: this package, and no visible GPU for the CPU."""
    return {**os.environ, "PYTHONPATH": python_path(), **({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})}


def run_and_kill(command: list[str], device: str, root: Path, seconds: float = 220.0) -> int:
    """Start a run and kill it once a checkpoint is complete; returns the newest checkpoint's step, or 0."""
    with (root / "killed.log").open("w", encoding="utf-8") as out:
        process = subprocess.Popen([sys.executable, *command], env=environment(device), stdout=out, stderr=out)
        begun = time.monotonic()
        while process.poll() is None and not saved_steps(root / "run") and time.monotonic() - begun < seconds:
            time.sleep(0.02)
        process.kill()
        process.wait()
    return max(saved_steps(root / "run"), default=0)


def saved_steps(work_dir: Path) -> list[int]:
    """Steps of a run's checkpoints; a file gets its final name when it is complete."""
    return [int(p.stem.rsplit("_", 1)[1]) for p in work_dir.glob("iter_*.pth")]


def run_to_end(command: list[str], device: str, root: Path, seconds: float = 220.0) -> str:
    """Run to the end, or until the time limit; returns the log."""
    path = root / "run.log"
    with path.open("w", encoding="utf-8") as out:
        try:
            subprocess.run(
                [sys.executable, *command],
                env=environment(device),
                stdout=out,
                stderr=out,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            out.write(f"\nstopped after {seconds:.0f} s\n")
    return path.read_text(encoding="utf-8", errors="replace")


def progress(work_dir: Path) -> list[dict[str, Any]]:
    """Logged training steps of all starts of a run, in order; for repeated steps the last one."""
    rows: dict[int, dict[str, Any]] = {}
    for path in sorted(work_dir.glob("*/vis_data/*.json")):
        if path.name == "config.json":
            continue
        for _, row in read_json_lines(path, "training log"):
            if "loss" in row and "time" in row:
                rows[row["step"]] = row
    return [rows[n] for n in sorted(rows)]
