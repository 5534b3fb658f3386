"""A grid on the toy world: alignments x seeds, heads with masks on and off; tables of means and spreads, and pairs.

CLIP and SmartCLIP are trained from nothing; the published order, masks added to a finished CLIP, and the variants that
keep boxes are measured beside them, from pretrained towers that a seed's two-stage variants share. What is done is not
done again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import check_choice
from smartclip_det.core.mask_modes import RETRIEVAL_MODES
from smartclip_det.studies.grid_table import Table, numbers_of, write_table
from smartclip_det.studies.toy import DETECTOR, TEMPLATE, alignment_options
from smartclip_det.utils.cfg_options import format_options
from smartclip_det.utils.steps import Step, StepRunner, verb


@dataclass(frozen=True)
class Variant:
    """An alignment.

    Attributes:
        config: in ``configs/toy``.
        scorings: mask modes that its texts are scored by.
        stages: 1: from nothing; 2: from pretrained towers.
    """

    config: str
    scorings: Sequence[str] = RETRIEVAL_MODES
    stages: int = 1


VARIANTS = {
    "clip": Variant("clip-align_toy", ("off",)),
    "smartclip": Variant("smartclip-align_toy"),
    "non_modular": Variant("smartclip-align_non-modular_toy"),
    "two_stage_clip": Variant("clip-align_two-stage_toy", ("off",), 2),
    "two_stage_smartclip": Variant("smartclip-align_two-stage_toy", stages=2),
    "longclip": Variant("longclip-align_toy", ("off",), 2),
    "keep_crops": Variant("smartclip-align_keep-crops_toy", ("hard", "off"), 2),
    "keep_regions": Variant("smartclip-align_keep-regions_toy", ("hard", "off"), 2),
    "keep_both": Variant("smartclip-align_keep-both_toy", ("hard", "off"), 2),
}
#: Detector heads: towers, and mask mode in training.
HEADS = {
    "clip_off": ("clip", "off"),
    "smartclip_hard": ("smartclip", "hard"),
    "smartclip_off": ("smartclip", "off"),
    "keep_crops_hard": ("keep_crops", "hard"),
    "keep_regions_hard": ("keep_regions", "hard"),
    "keep_both_hard": ("keep_both", "hard"),
}
TEST_MODES = RETRIEVAL_MODES
#: What else is varied in testing, on heads that were trained with masks: by name, the policy's changes.
POLICIES: dict[str, dict[str, str]] = {
    "head hard, dense off": {"dense_mask_mode": "off"},
    "head off, dense hard": {"mask_mode": "off", "dense_mask_mode": "hard"},
    "text norm full": {"text_norm": "full"},
    "ceiling calibrated": {"calibration": "ceiling", "text_norm": "full"},
    "background, mask of ones": {"background": "text_ones"},
    "background, zero column": {"background": "zero"},
    "dense normalised": {"dense_norm": "pixel"},
    "no fusion": {"fusion": "none"},
}


@dataclass(frozen=True)
class GridOptions:
    """Which variants, how long, on which seeds.

    Attributes:
        seeds: of weights, order and captions.
        data: the world, one for all seeds.
        out: folder that is written to.
        steps: of each alignment from nothing.
        pretrain: epochs of CLIP from nothing, for the two-stage variants.
        align: epochs of their second stage.
        variants: alignments.
        heads: detector heads of those.
        policies: test one head under further policies.
        pretrained: folder of an earlier study whose pretrained towers are used.
        detector: epochs of each detector; 0 for none.
    """

    seeds: Sequence[int] = (0, 1, 2)
    data: Path = Path("data/toy")
    out: Path = Path("work_dirs/study")
    steps: int = 2000
    pretrain: int = 10
    align: int = 3
    variants: Sequence[str] = tuple(VARIANTS)
    heads: Sequence[str] = tuple(HEADS)
    policies: bool = False
    pretrained: Path | None = None
    detector: int = 1

    def __post_init__(self) -> None:
        for what, asked, known in (("variant", self.variants, VARIANTS), ("head", self.heads, HEADS)):
            for name in asked:
                check_choice(what, name, known)

    @property
    def chosen_heads(self) -> list[str]:
        """Heads that are trained: those whose towers are."""
        return [n for n, (towers, _) in HEADS.items() if self.detector and n in self.heads and towers in self.variants]

    @property
    def tests(self) -> dict[str, tuple[str, dict[str, str]]]:
        """Rows of detection: heads, and what their policy changes."""
        rows = {f"{n}, tested {m}": (n, {"mask_mode": m}) for n in self.chosen_heads for m in TEST_MODES}
        if self.policies and "smartclip_hard" in self.chosen_heads:
            rows |= {
                f"smartclip_hard, {n}": ("smartclip_hard", {"mask_mode": "hard", **p}) for n, p in POLICIES.items()
            }
        return rows


def run_grid(task: GridOptions) -> None:
    """Run what is not done, seed by seed, and write the tables after each."""
    world = Step("world", verb("data make-toy", "--out", str(task.data)), [task.data / "world.json"])
    if not world.outputs[0].is_file():
        StepRunner(task.out).run(world, 1)
    scorings = {n: VARIANTS[n].scorings for n in task.variants}
    by_seed: dict[int, Table] = {}
    for number, seed in enumerate(task.seeds, 1):
        print(f"seed {seed} ({number} of {len(task.seeds)})", flush=True)
        StepRunner(task.out / f"seed_{seed}").run_stages(Seed(task, seed).stages())
        by_seed[seed] = numbers_of(task.out / f"seed_{seed}", scorings, {r: slug(r) for r in task.tests})
        facts = {k: getattr(task, k) for k in ("steps", "pretrain", "align", "detector")}
        write_table(task.out, by_seed, {**facts, "data": str(task.data)})


class Seed:
    """The steps of one seed."""

    def __init__(self, task: GridOptions, seed: int) -> None:
        self.task, self.seed, self.out = task, seed, task.out / f"seed_{seed}"

    def stages(self) -> list[list[Step]]:
        """Steps in order."""
        names = list(self.task.variants)
        two_stage = [n for n in names if VARIANTS[n].stages == 2]
        first = [self.one_stage(n) for n in names if n not in two_stage]
        if two_stage and not self.task.pretrained:
            options = {"towers.seed": self.seed, "randomness.seed": self.seed}
            first.append(self.epochs("pretrain", "clip-pretrain_toy", self.task.pretrain, options))
        stages = [
            first,
            [self.two_stage(n) for n in two_stage],
            [self.probe(n) for n in names],
            [self.head(n) for n in self.task.chosen_heads],
            [self.test(row, *what) for row, what in self.task.tests.items()],
        ]
        return [stage for stage in stages if stage]

    def towers(self, name: str) -> Path:
        """Final checkpoint of an alignment."""
        if name == "pretrain":
            return (self.task.pretrained or self.task.out) / f"seed_{self.seed}/{name}/epoch_{self.task.pretrain}.pth"
        one = VARIANTS[name].stages == 1
        return self.out / name / (f"iter_{self.task.steps}.pth" if one else f"epoch_{self.task.align}.pth")

    def one_stage(self, name: str) -> Step:
        """An alignment from nothing."""
        return self.alignment(name, VARIANTS[name].config, alignment_options(self.task.steps, self.seed))

    def two_stage(self, name: str) -> Step:
        """An alignment from the pretrained towers."""
        source = {"towers.checkpoint": self.towers("pretrain"), "randomness.seed": self.seed}
        new = {} if VARIANTS[name].scorings == ("off",) else {"towers.seed": self.seed}
        return self.epochs(name, VARIANTS[name].config, self.task.align, {**source, **new})

    def epochs(self, name: str, config: str, epochs: int, source: dict[str, Any]) -> Step:
        """An alignment that counts epochs."""
        return self.alignment(
            name,
            config,
            {
                "train_cfg.max_epochs": epochs,
                "train_cfg.val_interval": epochs,
                "param_scheduler.1.T_max": epochs,
                "param_scheduler.1.end": epochs,
                "train_dataloader.dataset.seed": self.seed,
                **source,
            },
        )

    def alignment(self, name: str, config: str, options: dict[str, Any]) -> Step:
        """An alignment run."""
        metrics = self.out / f"{name}.metrics.json"
        command = verb(
            "train",
            f"configs/toy/{config}.py",
            "--work-dir",
            str(self.out / name),
            *format_options({"data_root": f"{self.task.data}/", "val_evaluator.metrics_file": metrics, **options}),
        )
        return Step(name, command, [self.towers(name), metrics])

    def probe(self, name: str) -> Step:
        """The region probe of one alignment; texts are normed as in its training."""
        annotations, out = self.task.data / "annotations", self.out / f"probe_{name}.json"
        command = verb(
            "probe",
            "--encoder",
            str(self.towers(name)),
            "--ann",
            str(annotations / "instances_val.json"),
            "--images",
            str(self.task.data / "images/val"),
            "--split-file",
            str(annotations / "split.json"),
            "--templates",
            TEMPLATE,
            "--crop-context",
            "2.0",
            "--mask-modes",
            *VARIANTS[name].scorings,
            "--text-norm",
            "masked" if VARIANTS[name].stages == 1 else "full",
            "--out",
            str(out),
        )
        return Step(f"probe_{name}", command, [out])

    def detector_options(self, name: str) -> dict[str, Any]:
        """Overrides that training and testing share."""
        return {"data_root": f"{self.task.data}/", "towers.checkpoint": self.towers(HEADS[name][0])}

    def heads(self, name: str) -> Path:
        """Final checkpoint of a detector."""
        return self.out / f"heads_{name}" / f"epoch_{self.task.detector}.pth"

    def head(self, name: str) -> Step:
        """Heads trained with one mask mode."""
        epochs = self.task.detector
        options = {
            **self.detector_options(name),
            "model.policy.mask_mode": HEADS[name][1],
            "randomness.seed": self.seed,
            "train_cfg.max_epochs": epochs,
            "train_cfg.val_interval": epochs + 1,
            "param_scheduler.1.T_max": epochs,
            "param_scheduler.1.end": epochs,
        }
        folder = str(self.heads(name).parent)
        command = verb("train", DETECTOR, "--work-dir", folder, *format_options(options))
        return Step(f"heads_{name}", command, [self.heads(name)])

    def test(self, row: str, name: str, policy: dict[str, str]) -> Step:
        """One test of trained heads under changes of the policy."""
        out = self.out / f"detection_{slug(row)}.json"
        options = {**self.detector_options(name), **{f"model.policy.{k}": v for k, v in policy.items()}}
        command = verb(
            "test",
            DETECTOR,
            str(self.heads(name)),
            "--work-dir",
            str(self.out / "tests" / out.stem),
            "--out",
            str(out),
            *format_options(options),
        )
        return Step(out.stem, command, [out.with_suffix(".metrics.json")])


def slug(name: str) -> str:
    """A name for files."""
    return name.replace(", ", "_").replace(" ", "_")
