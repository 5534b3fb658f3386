#!/usr/bin/env python
"""Check that the package installs and works outside the repository.

    .venv/bin/python .ci/check_wheel.py                 # builds the wheel, two fresh environments: base and [det]
    .venv/bin/python .ci/check_wheel.py --only base --keep /tmp/wheel

From an empty directory: imports all modules, runs the README's code blocks, builds packaged configs, and runs a command
of each family on tiny random towers. Large dependencies come from uv's cache, which `make setup` fills.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
UV = shutil.which("uv", path=f"{REPO / '.uv/bin'}{os.pathsep}{os.environ['PATH']}")

#: Run in each environment. ``det``: whether MMDetection is installed.
INSIDE = """
import importlib, json, pkgutil, subprocess, sys
from importlib.metadata import metadata
det, repo_configs = sys.argv[1] == "det", json.loads(sys.argv[2])
import smartclip_det
assert "site-packages" in smartclip_det.__file__, smartclip_det.__file__
about = metadata("smartclip_det")
assert about["License-Expression"] == "Apache-2.0" and len(about.get_all("Classifier")) > 3
needing = []
for module in pkgutil.walk_packages(smartclip_det.__path__, "smartclip_det.", onerror=lambda name: None):
    if module.name.startswith("smartclip_det.configs") or module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except Exception as error:
        assert not det and ("mmdet" in str(error) or "mmcv" in str(error)), (module.name, error)
        needing.append(module.name.removeprefix("smartclip_det."))
print(f"needs det: {', '.join(needing) or 'nothing'}")
from smartclip_det.models.template_sets import templates
assert len(templates("vild_63")) == 63 and len(templates("clip_80")) == 80
from smartclip_det.utils.config_files import config_names
assert config_names() == repo_configs, set(config_names()) ^ set(repo_configs)
from smartclip_det.engine.config import load_config
from mmengine.registry import MODELS
load_config("smartclip_align/smartclip-b16_1024-3e_sharegpt4v")
toy = load_config("toy/smartclip-align_toy", {"towers.arch": "SmartCLIP-tiny"})
print("built:", type(MODELS.build(toy.model)).__name__)
from smartclip_det.apis.detector_loading import build_detector
from smartclip_det.core.errors import UserError
name = "ov_coco/open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco"
tiny = {"towers.arch": "SmartCLIP-toy", "data_root": "x/"}
if det:
    _, detector = build_detector("toy/open-vocab-rcnn_smartclip-toy_toy", None)
    print("built:", type(detector).__name__)
    load_config(name, tiny)
    load_config("rescore/faster-rcnn_smartclip-b16_coco")
else:
    try:
        build_detector("toy/open-vocab-rcnn_smartclip-toy_toy", None)
    except UserError as error:
        assert 'pip install "smartclip_det[det]"' in str(error), error
    else:
        raise AssertionError("built without MMDetection")
from smartclip_det.models.towers import SmartCLIP
SmartCLIP.from_arch("SmartCLIP-tiny").save("tiny.safetensors")
from pathlib import Path
from PIL import Image
for n, folder in enumerate(("cat", "dog")):
    Path("classes", folder).mkdir(parents=True)
    Image.new("RGB", (40, 30), (90 * n, 20, 60)).save(f"classes/{folder}/1.png")
"""
WORLD = ["--ann", "toy/annotations/instances_val.json", "--images", "toy/images/val"]
ENCODER = ["--encoder", "tiny.safetensors", "--device", "cpu"]
#: One command of each family that does not need MMDetection; later ones read the outputs of earlier ones.
BASE = [
    ["data", "make-toy", "--out", "toy", "--train", "16", "--val", "4", "--test", "2"],
    ["print-config", "toy/smartclip-align_toy"],
    ["encode-texts", "--vocabulary", "coco_80", *ENCODER, "--no-cache", "--out", "bank.safetensors"],
    ["convert", "tiny.safetensors", "copy.safetensors"],
    ["classify", "classes", "--templates", "photo", *ENCODER, "--workers", "0"],
    [
        "retrieve",
        "captions",
        "--data",
        "toy/annotations/captions_val.json",
        "--images",
        "toy/images/val",
        *ENCODER,
        "--workers",
        "0",
    ],
    ["probe", *WORLD, *ENCODER],
    ["rescore", *WORLD, "--boxes", "ground-truth", *ENCODER, "--out", "pred.json"],
    ["evaluate", "coco", *WORLD[:2], "--pred", "pred.json"],
    [
        "ground",
        "toy/refs/finetune_toy_val.json",
        "--images",
        "toy/images",
        *ENCODER,
        "--proposals",
        "ground-truth",
        "--answers",
        "all",
        "--out",
        "boxes.jsonl",
    ],
    ["evaluate", "grefcoco", "--ann", "toy/refs/finetune_toy_val.json", "--pred", "boxes.jsonl", "--threshold", "0.5"],
    [
        "train",
        "toy/smartclip-align_toy",
        "--cfg-options",
        "data_root=toy/",
        "towers.arch=SmartCLIP-tiny",
        "train_dataloader.batch_size=8",
        "train_dataloader.dataset.scenes.ramp=16",
        "train_cfg.max_steps=2",
        "param_scheduler.warmup=1",
        "--work-dir",
        "aligned",
    ],
]
DET = [
    ["data", "make-toy", "--out", "toy", "--train", "16", "--val", "4", "--test", "2"],
    ["check", "config", "toy/open-vocab-rcnn_smartclip-toy_toy"],
    [
        "train",
        "toy/open-vocab-rcnn_smartclip-toy_toy",
        "--cfg-options",
        "data_root=toy/",
        "train_dataloader.batch_size=4",
        "--work-dir",
        "detector",
    ],
    [
        "test",
        "toy/open-vocab-rcnn_smartclip-toy_toy",
        "detector/epoch_1.pth",
        "--cfg-options",
        "data_root=toy/",
        "--out",
        "pred.json",
    ],
    [
        "demo",
        "classes/cat/1.png",
        "--texts",
        "red mug",
        "--config",
        "toy/open-vocab-rcnn_smartclip-toy_toy",
        "--checkpoint",
        "detector/epoch_1.pth",
        "--device",
        "cpu",
    ],
]


def main() -> int:
    """Build, install and run; stop at the first failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["base", "det"], help="check only this environment")
    parser.add_argument("--keep", type=Path, help="folder for wheel, environments and outputs; default: temporary")
    parser.add_argument("--python", default=f"{sys.version_info[0]}.{sys.version_info[1]}", help="version or path")
    args = parser.parse_args()
    if UV is None:
        print("error: uv is required; `make setup` installs it.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as passing:
        root = (args.keep or Path(passing)).resolve()
        wheel = build(root / "dist", args.python)
        for kind in [args.only] if args.only else ["base", "det"]:
            check(kind, wheel, root / kind, args.python)
    return 0


def build(out: Path, python: str) -> Path:
    """Build the wheel; it must contain all tracked files of the package and configs."""
    shutil.rmtree(out, ignore_errors=True)
    run("build", [UV, "build", "--quiet", "--python", python, "--out-dir", out], cwd=REPO)
    (wheel,) = out.glob("*.whl")
    known = subprocess.run(["git", "ls-files", "smartclip_det", "configs"], cwd=REPO, capture_output=True, text=True)
    expected = {re.sub(r"^configs/", "smartclip_det/configs/", f) for f in known.stdout.splitlines()}
    if missing := sorted(expected - set(zipfile.ZipFile(wheel).namelist())):
        raise SystemExit(f"error: {wheel.name} lacks {', '.join(missing)}")
    return wheel


def check(kind: str, wheel: Path, root: Path, python: str) -> None:
    """Create an environment, and run all checks from an empty directory."""
    shutil.rmtree(root, ignore_errors=True)
    empty = root / "empty"
    empty.mkdir(parents=True)
    venv = root / "venv"
    run(f"{kind}: venv", [UV, "venv", "--quiet", "--python", python, venv], cwd=REPO)
    # From the repository root, so that uv uses the versions pinned in pyproject.toml.
    what = f"{wheel}[det]" if kind == "det" else wheel
    install = [UV, "pip", "install", "--quiet", "--python", venv / "bin/python", what, "opencv-python-headless"]
    run(f"{kind}: install", install, cwd=REPO)
    names = sorted(
        p.relative_to(REPO / "configs").with_suffix("").as_posix()
        for p in (REPO / "configs").rglob("*.py")
        if "_base_" not in p.parts
    )
    listed = "[" + ", ".join(f'"{n}"' for n in names) + "]"
    run(f"{kind}: imports and configs", [venv / "bin/python", "-c", INSIDE, kind, listed], cwd=empty)
    for n, block in enumerate(re.findall(r"```python\n(.*?)```", (REPO / "README.md").read_text("utf-8"), flags=re.S)):
        if "from_pretrained(" in block:  # Weights by name need a hub; a test runs these lines against one of its own.
            continue
        run(f"{kind}: README's lines {n + 1}", [venv / "bin/python", "-c", block], cwd=empty)
    for command in DET if kind == "det" else BASE:
        run(f"{kind}: {' '.join(command[:2])}", [venv / "bin/smartclip-det", *command], cwd=empty)


def run(what: str, command: list[object], cwd: Path) -> None:
    """Run a command and print its time; exit with its output on failure."""
    started = time.monotonic()
    outside = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=outside, capture_output=True, text=True, check=False)
    print(f"{what:40s} {time.monotonic() - started:6.1f} s", flush=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout[-3000:]}{done.stderr[-3000:]}\nerror: {what} failed ({done.returncode})")


if __name__ == "__main__":
    sys.exit(main())
