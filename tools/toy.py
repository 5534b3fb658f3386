#!/usr/bin/env python
"""The whole story on the toy world: alignment, region probe, detection of never-labelled shapes, grounding, report.

    python tools/toy.py                      # about 20 minutes on 4 cores (make toy)
    python tools/toy.py --quick              # a small one of a few minutes: shows that all works, learns little
    python tools/toy.py --seed 1 --out work_dirs/toy_seed1

Every step is a public tool with a public config; its command is printed, and its output kept in OUT/logs. A step that
is done is not run again unless its command changed or an earlier step ran.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from smartclip_det.core.errors import UserError
from smartclip_det.evaluation.stamp import code_version
from smartclip_det.utils.cli import run_tool
from smartclip_det.utils.parallel import available_cores

REPO = Path(__file__).resolve().parents[1]
MODES = ("hard", "soft", "off", "random", "shuffled")
TEMPLATE = "{article} {}"


@dataclass(frozen=True)
class Size:
    """How much is drawn and trained.

    Attributes:
        world: options of ``tools/data/make_toy.py``.
        pretrain: epochs of CLIP from nothing.
        align: epochs of each alignment.
        detector: epochs of the detector's heads.
        sentences: expressions that are grounded, 0 for all.
    """

    world: tuple[str, ...]
    pretrain: int
    align: int
    detector: int
    sentences: int


DEFAULT = Size((), 8, 3, 1, 0)
QUICK = Size(("--train", "1280", "--val", "120", "--test", "20"), 2, 1, 1, 150)


@dataclass
class Step:
    """One command.

    Attributes:
        name: also the name of its log.
        command: tool and options, from the root of the repository.
        outputs: files that exist when it is done.
    """

    name: str
    command: list[str]
    outputs: list[Path] = field(default_factory=list)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="default work_dirs/toy, or work_dirs/toy_quick")
    parser.add_argument("--data", type=Path, default=None, help="the world; default data/toy, or data/toy_quick")
    parser.add_argument("--seed", type=int, default=0, help="of world, weights, order and captions")
    parser.add_argument("--quick", action="store_true", help="a small world and short training")
    return parser.parse_args()


def main() -> None:
    """Run what is not done yet, then report."""
    args = parse_args()
    size, ending = (QUICK, "_quick") if args.quick else (DEFAULT, "")
    out = args.out or Path(f"work_dirs/toy{ending}")
    data = args.data or Path(f"data/toy{ending}" + (f"_seed{args.seed}" if args.seed else ""))
    story = Story(out, data, args.seed, size)
    begin = time.perf_counter()
    stages = story.stages()
    for number, stage in enumerate(stages, 1):
        story.run_stage(stage, f"[{number}/{len(stages)}]")
    story.report(args.quick, time.perf_counter() - begin)


class Story:
    """The steps of one run, and what is done of them."""

    def __init__(self, out: Path, data: Path, seed: int, size: Size) -> None:
        self.out, self.data, self.seed, self.size = out, data, seed, size
        (out / "logs").mkdir(parents=True, exist_ok=True)
        self._state = out / "steps.json"
        self.done: dict[str, dict[str, object]] = {}
        if self._state.is_file():
            self.done = json.loads(self._state.read_text(encoding="utf-8"))
        self._stale = False

    def stages(self) -> list[list[Step]]:
        """Steps in order; those of one stage do not need each other and run side by side."""
        world = ["tools/data/make_toy.py", "--out", str(self.data), "--seed", str(self.seed), *self.size.world]
        return [
            [Step("world", world, [self.data / "world.json"])],
            [self.training("pretrain", "clip-pretrain_toy", self.size.pretrain)],
            [
                self.training("clip", "clip-align_toy", self.size.align, self.last("pretrain", self.size.pretrain)),
                self.training("smartclip", "smartclip-align_toy", self.size.align,
                              self.last("pretrain", self.size.pretrain)),
            ],
            [self.probe("clip"), self.probe("smartclip"), self.probe("random")],
            [self.detector("detector", self.towers("smartclip")), self.detector("detector_random", None)],
            [*self.tests(), *self.groundings()],
        ]  # fmt: skip

    def last(self, name: str, epochs: int) -> Path:
        """Final checkpoint of a training."""
        return self.out / name / f"epoch_{epochs}.pth"

    def towers(self, name: str) -> Path:
        """Final checkpoint of an alignment."""
        return self.last(name, self.size.align)

    def training(self, name: str, config: str, epochs: int, start: Path | None = None) -> Step:
        """An alignment run; its metrics are written at each validation."""
        metrics = self.out / f"{name}.metrics.json"
        options = {
            "data_root": f"{self.data}/", "randomness.seed": self.seed, "train_cfg.max_epochs": epochs,
            "param_scheduler.1.T_max": epochs, "param_scheduler.1.end": epochs,
            "train_dataloader.dataset.seed": self.seed,
            "val_evaluator.metrics_file": metrics, "train_cfg.val_interval": max(1, epochs // 4),
            **({"towers.checkpoint": start} if start else {"towers.seed": self.seed}),
        }  # fmt: skip
        command = ["tools/train.py", f"configs/toy/{config}.py", "--work-dir", str(self.out / name), *settings(options)]
        return Step(name, command, [self.last(name, epochs), metrics])

    def probe(self, name: str) -> Step:
        """The region probe of one pair of towers."""
        where = ["--arch", "SmartCLIP-toy"] if name == "random" else ["--checkpoint", str(self.towers(name))]
        annotations = self.data / "annotations"
        out = self.out / f"probe_{name}.json"
        command = [
            "tools/analysis/region_probe.py", *where, "--ann", str(annotations / "instances_val.json"),
            "--images", str(self.data / "images/val"), "--split-file", str(annotations / "split.json"),
            "--templates", TEMPLATE, "--crop-context", "2.0", "--views", "crop", "dense", "mask",
            "--mask-modes", *MODES, "--dense-modes", "vanilla", "value", "qq_kk", "clearclip", "--out", str(out),
        ]  # fmt: skip
        return Step(f"probe_{name}", command, [out])

    def detector_options(self, towers: Path | None) -> dict[str, object]:
        """Overrides that training and testing share."""
        return {"data_root": f"{self.data}/", **({"towers.checkpoint": towers} if towers else {})}

    def detector(self, name: str, towers: Path | None) -> Step:
        """The detector's heads on frozen towers; without towers on random ones, as a control."""
        epochs = self.size.detector
        options = {**self.detector_options(towers), "randomness.seed": self.seed, "train_cfg.max_epochs": epochs,
                   "train_cfg.val_interval": epochs + 1, "param_scheduler.1.T_max": epochs,
                   "param_scheduler.1.end": epochs}  # fmt: skip
        command = ["tools/train.py", DETECTOR, "--work-dir", str(self.out / name), *settings(options)]
        return Step(name, command, [self.last(name, epochs)])

    def tests(self) -> list[Step]:
        """The detector under every mask mode and control."""
        modes: dict[str, dict[str, object]] = {m: {"model.policy.mask_mode": m} for m in MODES}
        modes["text_shuffled"] = {"custom_hooks.0.control": "text_shuffled"}
        modes["random_tower"] = {}
        steps = []
        for mode, options in modes.items():
            name = "detector_random" if mode == "random_tower" else "detector"
            towers = None if mode == "random_tower" else self.towers("smartclip")
            out = self.out / f"detection_{mode}.json"
            command = [
                "tools/test.py", DETECTOR, str(self.last(name, self.size.detector)), "--work-dir",
                str(self.out / "tests" / mode), "--out", str(out),
                *settings({**self.detector_options(towers), **options}),
            ]  # fmt: skip
            steps.append(Step(f"detection_{mode}", command, [out, out.with_suffix(".metrics.json")]))
        return steps

    def groundings(self) -> list[Step]:
        """Zero-shot grounding on the detector's proposals and on ground-truth boxes."""
        towers = self.towers("smartclip")
        rpn = ["--proposals", "rpn", "--max-proposals", "10", "--config", DETECTOR, "--detector",
               str(self.last("detector", self.size.detector)), "--cfg-options",
               *settings(self.detector_options(towers))[1:]]  # fmt: skip
        truth = ["--proposals", "ground-truth", "--instances", str(self.data / "annotations/instances_val.json")]
        runs = {
            "grounding": [*rpn, "--mask-modes", *MODES],
            "grounding_text_shuffled": [*rpn, "--control", "text_shuffled"],
            "grounding_spatial": [*rpn, "--mask-modes", "hard", "off", "--spatial"],
            "grounding_crop": [*rpn, "--mask-modes", "hard", "off", "--views", "crop"],
            "grounding_ground_truth": [*truth, "--mask-modes", *MODES],
        }
        steps = []
        for name, options in runs.items():
            out = self.out / f"{name}.jsonl"
            command = [
                "tools/ground.py", str(self.data / "refs/finetune_toy_val.json"), "--images",
                str(self.data / "images"), "--checkpoint", str(towers), "--limit", str(self.size.sentences),
                "--out", str(out), *options,
            ]  # fmt: skip
            steps.append(Step(name, command, [out.with_suffix(".metrics.json")]))
        return steps

    def run_stage(self, stage: Sequence[Step], label: str) -> None:
        """Run the steps of a stage that are not done; once one has run, everything after it runs too."""
        due = [s for s in stage if self._stale or not self._is_done(s)]
        for step in stage:
            if step not in due:
                print(f"{label} {step.name}: done before ({self.done[step.name]['seconds']:.0f} s)", flush=True)
        if not due:
            return
        self._stale = True
        side_by_side = min(len(due), available_cores())
        threads = max(1, available_cores() // side_by_side)
        with ThreadPoolExecutor(side_by_side) as pool:
            for step, seconds in pool.map(lambda s: (s, self._run(s, threads, label)), due):
                self.done[step.name] = {"command": step.command, "seconds": seconds}
        write_json(self._state, self.done)

    def _is_done(self, step: Step) -> bool:
        before = self.done.get(step.name)
        return before is not None and before["command"] == step.command and all(p.is_file() for p in step.outputs)

    def _run(self, step: Step, threads: int, label: str) -> float:
        """Run one command; its last line of progress is shown every ten seconds."""
        print(f"{label} {step.name}: python {shlex.join(step.command)}", flush=True)
        log = self.out / "logs" / f"{step.name}.log"
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(REPO),
                       # Waiting threads must not keep a core busy that a neighbour needs.
                       "OMP_WAIT_POLICY": "PASSIVE"}  # fmt: skip
        begin = time.perf_counter()
        with log.open("w", encoding="utf-8") as handle:
            child = subprocess.Popen([sys.executable, *step.command], stdout=handle, stderr=subprocess.STDOUT, cwd=REPO,
                                     env=environment)  # fmt: skip
            shown = begin
            while child.poll() is None:
                time.sleep(0.2)
                if time.perf_counter() - shown >= 10:
                    shown = time.perf_counter()
                    print(f"    {step.name} {shown - begin:4.0f} s  {last_progress(log)}", flush=True)
        seconds = time.perf_counter() - begin
        missing = [p for p in step.outputs if not p.is_file()]
        if child.returncode or missing:
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            raise UserError(
                f"{step.name} failed (exit {child.returncode}"
                + (f", did not write {missing[0]}" if missing else "")
                + f"). Its log, {log}, ends:\n{tail}\nRun the same command again to go on from here."
            )
        print(f"{label} {step.name}: {seconds:.0f} s", flush=True)
        return seconds

    def report(self, quick: bool, wall: float) -> None:
        """The page and the summary."""
        seconds = {name: float(entry["seconds"]) for name, entry in self.done.items()}  # type: ignore[arg-type]
        facts = {"seed": self.seed, "quick": quick, "seconds": {**seconds, "total": wall}, "code": code_version(),
                 "data": str(self.data), "cores": available_cores(), "resumed": not self._stale,
                 "detector": str(self.last("detector", self.size.detector)), "towers": str(self.towers("smartclip")),
                 "config": DETECTOR}  # fmt: skip
        write_json(self.out / "facts.json", facts)
        step = Step("report", ["tools/analysis/toy_report.py", "--folder", str(self.out)], [self.out / "report.html"])
        self._run(step, available_cores(), "[report]")
        print((self.out / "logs/report.log").read_text(encoding="utf-8").strip())
        print(f"total {wall:.0f} s. Open {self.out / 'report.html'} in a browser.")


DETECTOR = "configs/toy/open-vocab-rcnn_smartclip-toy_toy.py"


def settings(options: dict[str, object]) -> list[str]:
    """``--cfg-options`` with its values."""
    return ["--cfg-options", *(f"{k}={v}" for k, v in options.items())]


def last_progress(log: Path) -> str:
    """The newest line of a log that tells progress."""
    return next(_progress_lines(log.read_text(encoding="utf-8", errors="replace")), "starting")


def _progress_lines(text: str) -> Iterator[str]:
    for line in reversed(text.replace("\r", "\n").splitlines()):
        if "eta:" in line:
            yield line.split(" - INFO - ")[-1].split("time:")[0].strip()
        elif "it/s" in line or "image/s" in line or "s/image" in line:
            yield line.strip()


def write_json(path: Path, content: object) -> None:
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    run_tool(main)
