"""The full pipeline on the toy world: alignments, region probe, detection of unlabelled shapes, grounding, report.

Every step is a public command with a public config; its command line is printed, and its output kept in ``OUT/logs``.
Finished steps are skipped unless their command line changed or an earlier step ran.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartclip_det.protocols.stamp import code_version
from smartclip_det.studies.toy_steps import DETECTOR, HEAD, ToySteps, epoch_options, step_options
from smartclip_det.utils.cfg_options import format_options
from smartclip_det.utils.parallel import available_cores
from smartclip_det.utils.safe_load import safe_torch_load
from smartclip_det.utils.steps import Step, StepRunner, verb, write_json

#: Tests of each set of heads: a mask mode, or a control.
TESTS = ("hard", "off", "random", "shuffled", "text_shuffled", "random_tower")
GROUNDING_MODES = ("hard", "off", "random", "shuffled")
HEAD_MODES = ("hard", "off")


@dataclass(frozen=True)
class Size:
    """Amounts of data and training.

    Attributes:
        world: options of ``smartclip-det data make-toy``.
        steps: steps of each alignment, 128 images each.
        images: training images of the detector's heads.
        control_images: training images of the heads on a random tower, a control that need not be good.
        head_images: training images of the grounding head.
        head_epochs: epochs of the grounding head, with two sentences per image.
        sentences: number of expressions for zero-shot grounding, 0 for all.
    """

    world: tuple[str, ...]
    steps: int
    images: int
    control_images: int
    head_images: int
    head_epochs: int
    sentences: int


DEFAULT = Size((), 2000, 10000, 5000, 20000, 2, 1000)
QUICK = Size(("--train", "1280", "--val", "120", "--test", "20"), 100, 480, 240, 320, 1, 100)


@dataclass(frozen=True)
class ToyOptions:
    """Options of the toy run.

    Attributes:
        out: output folder; None: ``work_dirs/toy``, or ``work_dirs/toy_quick``.
        data: toy world; None: ``data/toy``, or ``data/toy_quick``.
        seed: seed of weights, data order and captions.
        world_seed: seed of the world; None: ``seed``. Runs that share a world differ in training only.
        quick: a small world and short training.
    """

    out: Path | None = None
    data: Path | None = None
    seed: int = 0
    world_seed: int | None = None
    quick: bool = False


def tell_story(options: ToyOptions) -> None:
    """Run unfinished steps, then write the report."""
    size, ending = (QUICK, "_quick") if options.quick else (DEFAULT, "")
    out = options.out or Path(f"work_dirs/toy{ending}")
    world = options.seed if options.world_seed is None else options.world_seed
    data = options.data or Path(f"data/toy{ending}" + (f"_seed{world}" if world else ""))
    story = Story(out, data, options.seed, size, world)
    runner = StepRunner(out)
    runner.run_stages(story.stages())
    story.keep_checkpoints()
    story.report(runner, options.quick)


class Story:
    """The steps of one run."""

    def __init__(self, out: Path, data: Path, seed: int, size: Size, world_seed: int) -> None:
        self.out, self.data, self.seed, self.size, self.world_seed = out, data, seed, size, world_seed
        self.steps = ToySteps(out, data, seed)

    def stages(self) -> list[list[Step]]:
        """Steps in order; those of one stage are independent and run in parallel, the longest first."""
        probes = [
            self.steps.probe(
                name,
                None if name == "random" else self.towers(name),
                GROUNDING_MODES if name == "smartclip" else ("off",),
                views=("crop", "dense", "mask"),
            )
            for name in ("smartclip", "clip", "random")
        ]
        return [
            [self.steps.world(self.world_seed, self.size.world)],
            [self.alignment("smartclip"), self.alignment("clip")],
            [
                self.detector("detector", self.towers("smartclip"), self.size.images),
                self.grounding_head(),
                self.detector("detector_random", None, self.size.control_images),
                *probes,
            ],
            [*self.groundings(), *self.tests(), *self.head_tests()],
        ]

    def towers(self, name: str) -> Path:
        """Final checkpoint of an alignment."""
        return self.out / name / f"iter_{self.size.steps}.pth"

    def heads(self, name: str) -> Path:
        """Final checkpoint of a model trained on frozen towers."""
        return self.out / name / f"epoch_{self.size.head_epochs if name == 'referring' else 1}.pth"

    def alignment(self, name: str) -> Step:
        """An alignment run from scratch."""
        towers = {"towers.seed": self.seed}
        return self.steps.alignment(f"{name}-align_toy", self.towers(name), towers, step_options(self.size.steps))

    def detector(self, name: str, towers: Path | None, images: int) -> Step:
        """Detector heads on frozen towers; without towers on random ones, as a control."""
        options = {**frozen(towers), **epoch_options(1, validate=False), "train_dataloader.dataset.indices": images}
        return self.steps.heads(DETECTOR, self.heads(name), options)

    def grounding_head(self) -> Step:
        """The trained grounding head on the SmartCLIP towers."""
        options = {
            **frozen(self.towers("smartclip")),
            **epoch_options(self.size.head_epochs, validate=False),
            "train_dataloader.dataset.indices": self.size.head_images,
        }
        return self.steps.heads(HEAD, self.heads("referring"), options)

    def tests(self) -> list[Step]:
        """The detector with mask modes and controls."""
        trained, towers = self.heads("detector"), frozen(self.towers("smartclip"))
        cases: dict[str, tuple[Path, dict[str, Any], str | None]] = {
            **{mode: (trained, {**towers, "model.policy.mask_mode": mode}, None) for mode in GROUNDING_MODES},
            "text_shuffled": (trained, towers, "text_shuffled"),
            "random_tower": (self.heads("detector_random"), {}, None),
        }
        return [
            self.steps.test(self.out / f"detection_{name}.json", DETECTOR, heads, options, control)
            for name, (heads, options, control) in cases.items()
        ]

    def head_tests(self) -> list[Step]:
        """The grounding head with mask modes, including sentences with no and many targets."""
        towers = frozen(self.towers("smartclip"))
        return [
            self.steps.test(
                self.out / f"referring_{m}.jsonl", HEAD, self.heads("referring"), {**towers, "model.mask_mode": m}
            )
            for m in HEAD_MODES
        ]

    def groundings(self) -> list[Step]:
        """Zero-shot grounding on the detector's proposals and on ground-truth boxes."""
        towers = self.towers("smartclip")
        rpn = [
            "--proposals",
            "rpn",
            "--max-proposals",
            "10",
            "--config",
            DETECTOR,
            "--checkpoint",
            str(self.heads("detector")),
            *format_options({"data_root": f"{self.data}/", **frozen(towers)}),
        ]
        truth = ["--proposals", "ground-truth", "--instances", str(self.data / "annotations/instances_val.json")]
        runs = {
            "grounding": [*rpn, "--mask-modes", *GROUNDING_MODES],
            "grounding_text_shuffled": [*rpn, "--control", "text_shuffled"],
            "grounding_ground_truth": [*truth, "--mask-modes", "hard", "off"],
        }
        steps = []
        for name, options in runs.items():
            out = self.out / f"{name}.jsonl"
            command = verb(
                "ground",
                str(self.data / "refs/finetune_toy_val.json"),
                "--images",
                str(self.data / "images"),
                "--encoder",
                str(towers),
                "--limit",
                str(self.size.sentences),
                "--views",
                "dense",
                "--reading",
                "chunks",
                "--out",
                str(out),
                *options,
            )
            steps.append(Step(name, command, [out.with_suffix(".metrics.json")]))
        return steps

    def keep_checkpoints(self) -> None:
        """Copy weights without optimizer state to names that do not depend on the training length."""
        folder = self.out / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        trained = {
            "clip": self.towers("clip"),
            "smartclip": self.towers("smartclip"),
            "detector": self.heads("detector"),
            "referring": self.heads("referring"),
        }
        for name, path in trained.items():
            keep_weights(path, folder / f"{name}.pth")

    def report(self, runner: StepRunner, quick: bool) -> None:
        """Write the page and the summary."""
        facts = {
            "seed": self.seed,
            "quick": quick,
            "seconds": {**runner.seconds, "total": runner.spent},
            "code": code_version(),
            "data": str(self.data),
            "cores": available_cores(),
            "resumed": set(runner.ran) != set(runner.done),
            "config": DETECTOR,
            "steps": self.size.steps,
            "images": self.size.images,
            "control_images": self.size.control_images,
            "detector": str(self.out / "checkpoints/detector.pth"),
            "towers": {n: str(self.out / f"checkpoints/{n}.pth") for n in ("clip", "smartclip")},
        }
        write_json(self.out / "facts.json", facts)
        step = Step("report", verb("study toy-report", "--folder", str(self.out)), [self.out / "report.html"])
        runner.run(step, available_cores(), "[report]")
        print((self.out / "logs/report.log").read_text(encoding="utf-8").strip())
        print(f"total {runner.spent:.0f} s. Open {self.out / 'report.html'} in a browser.")


def frozen(towers: Path | None) -> dict[str, Any]:
    """Override that puts trained towers under heads."""
    return {"towers.checkpoint": towers} if towers else {}


def keep_weights(source: Path, out: Path) -> None:
    """Write weights and metadata of a checkpoint, without optimizer state."""
    import torch

    found = safe_torch_load(source)
    torch.save({k: found[k] for k in ("meta", "state_dict")}, out)
