"""The whole story on the toy world: alignment, region probe, detection of never-labelled shapes, grounding, report.

Every step is a public verb with a public config; its command is printed, and its output kept in ``OUT/logs``. A step
that is done is not run again unless its command changed or an earlier step ran.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from smartclip_det.protocols.stamp import code_version
from smartclip_det.utils.cfg_options import format_options
from smartclip_det.utils.parallel import available_cores
from smartclip_det.utils.steps import Step, StepRunner, verb, write_json

DETECTOR = "configs/toy/open-vocab-rcnn_smartclip-toy_toy.py"
MODES = ("hard", "soft", "off", "random", "shuffled")
TEMPLATE = "{article} {}"


@dataclass(frozen=True)
class Size:
    """How much is drawn and trained.

    Attributes:
        world: options of ``smartclip-det data make-toy``.
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


DEFAULT = Size((), 8, 2, 1, 0)
QUICK = Size(("--train", "1280", "--val", "120", "--test", "20"), 2, 1, 1, 150)


@dataclass(frozen=True)
class ToyOptions:
    """Which story is told.

    Attributes:
        out: folder of everything; None: ``work_dirs/toy``, or ``work_dirs/toy_quick``.
        data: the world; None: ``data/toy``, or ``data/toy_quick``.
        seed: of world, weights, order and captions.
        quick: a small world and short training.
    """

    out: Path | None = None
    data: Path | None = None
    seed: int = 0
    quick: bool = False


def tell_story(options: ToyOptions) -> None:
    """Run what is not done yet, then report."""
    size, ending = (QUICK, "_quick") if options.quick else (DEFAULT, "")
    out = options.out or Path(f"work_dirs/toy{ending}")
    data = options.data or Path(f"data/toy{ending}" + (f"_seed{options.seed}" if options.seed else ""))
    story = Story(out, data, options.seed, size)
    runner = StepRunner(out)
    runner.run_stages(story.stages())
    story.report(runner, options.quick)


class Story:
    """The steps of one run."""

    def __init__(self, out: Path, data: Path, seed: int, size: Size) -> None:
        self.out, self.data, self.seed, self.size = out, data, seed, size

    def stages(self) -> list[list[Step]]:
        """Steps in order; those of one stage do not need each other and run side by side."""
        world = verb("data make-toy", "--out", str(self.data), "--seed", str(self.seed), *self.size.world)
        return [
            [Step("world", world, [self.data / "world.json"])],
            [self.training("pretrain", "clip-pretrain_toy", self.size.pretrain)],
            [
                self.training("clip", "clip-align_two-stage_toy", self.size.align,
                              self.last("pretrain", self.size.pretrain)),
                self.training("smartclip", "smartclip-align_two-stage_toy", self.size.align,
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
        command = verb(
            "train", f"configs/toy/{config}.py", "--work-dir", str(self.out / name), *format_options(options)
        )
        return Step(name, command, [self.last(name, epochs), metrics])

    def probe(self, name: str) -> Step:
        """The region probe of one pair of towers."""
        where = ["--arch", "SmartCLIP-toy"] if name == "random" else ["--encoder", str(self.towers(name))]
        annotations = self.data / "annotations"
        out = self.out / f"probe_{name}.json"
        command = verb(
            "probe", *where, "--ann", str(annotations / "instances_val.json"),
            "--images", str(self.data / "images/val"), "--split-file", str(annotations / "split.json"),
            "--templates", TEMPLATE, "--crop-context", "2.0", "--views", "crop", "dense", "mask",
            "--mask-modes", *MODES, "--out", str(out),
        )  # fmt: skip
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
        command = verb("train", DETECTOR, "--work-dir", str(self.out / name), *format_options(options))
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
            command = verb(
                "test", DETECTOR, str(self.last(name, self.size.detector)), "--work-dir",
                str(self.out / "tests" / mode), "--out", str(out),
                *format_options({**self.detector_options(towers), **options}),
            )  # fmt: skip
            steps.append(Step(f"detection_{mode}", command, [out, out.with_suffix(".metrics.json")]))
        return steps

    def groundings(self) -> list[Step]:
        """Zero-shot grounding on the detector's proposals and on ground-truth boxes."""
        towers = self.towers("smartclip")
        rpn = ["--proposals", "rpn", "--max-proposals", "10", "--config", DETECTOR, "--checkpoint",
               str(self.last("detector", self.size.detector)),
               *format_options(self.detector_options(towers))]  # fmt: skip
        truth = ["--proposals", "ground-truth", "--instances", str(self.data / "annotations/instances_val.json")]
        crops = ["--views", "crop", "--crop-context", "1.6"]
        runs = {
            "grounding": [*rpn, *crops, "--reading", "chunks", "--mask-modes", *MODES],
            "grounding_text_shuffled": [*rpn, *crops, "--reading", "chunks", "--control", "text_shuffled"],
            "grounding_no_spatial": [*rpn, *crops, "--mask-modes", "hard", "off"],
            "grounding_dense": [*rpn, "--reading", "chunks", "--mask-modes", "hard", "off"],
            "grounding_ground_truth": [*truth, *crops, "--reading", "chunks", "--mask-modes", *MODES],
        }
        steps = []
        for name, options in runs.items():
            out = self.out / f"{name}.jsonl"
            command = verb(
                "ground", str(self.data / "refs/finetune_toy_val.json"), "--images",
                str(self.data / "images"), "--encoder", str(towers), "--limit", str(self.size.sentences),
                "--out", str(out), *options,
            )  # fmt: skip
            steps.append(Step(name, command, [out.with_suffix(".metrics.json")]))
        return steps

    def report(self, runner: StepRunner, quick: bool) -> None:
        """The page and the summary."""
        facts = {"seed": self.seed, "quick": quick, "seconds": {**runner.seconds, "total": runner.spent},
                 "code": code_version(), "data": str(self.data), "cores": available_cores(),
                 "resumed": set(runner.ran) != set(runner.done), "config": DETECTOR,
                 "detector": str(self.last("detector", self.size.detector)),
                 "towers": str(self.towers("smartclip"))}  # fmt: skip
        write_json(self.out / "facts.json", facts)
        step = Step("report", verb("study toy-report", "--folder", str(self.out)), [self.out / "report.html"])
        runner.run(step, available_cores(), "[report]")
        print((self.out / "logs/report.log").read_text(encoding="utf-8").strip())
        print(f"total {runner.spent:.0f} s. Open {self.out / 'report.html'} in a browser.")
