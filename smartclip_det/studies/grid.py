"""Grid on the toy world: alignments x seeds, detector heads with and without masks; tables of means, spreads and pairs.

CLIP and SmartCLIP are trained from scratch. The published order (masks added to a finished CLIP) and the variants that
preserve region accuracy start from pretrained towers, which the two-stage variants of a seed share. Finished steps are
not repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import check_choice
from smartclip_det.core.mask_modes import RETRIEVAL_MODES
from smartclip_det.studies.grid_table import Table, numbers_of, write_table
from smartclip_det.studies.toy_steps import DETECTOR, ToySteps, epoch_options, step_options
from smartclip_det.utils.steps import Step, StepRunner


@dataclass(frozen=True)
class Variant:
    """An alignment.

    Attributes:
        config: config in ``configs/toy``.
        scorings: mask modes for scoring its texts.
        stages: 1: from scratch; 2: from pretrained towers.
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
#: Further test settings of heads that were trained with masks: name -> policy changes.
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
    """Options of the grid: variants, lengths and seeds.

    Attributes:
        seeds: seeds of weights, data order and captions.
        data: toy world, shared by all seeds.
        out: output folder.
        steps: steps of each alignment from scratch.
        pretrain: epochs of CLIP from scratch, for the two-stage variants.
        align: epochs of their second stage.
        variants: alignments.
        heads: detector heads on these alignments.
        policies: test one head with further policies.
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
        """Heads whose towers are trained in this run."""
        return [n for n, (towers, _) in HEADS.items() if self.detector and n in self.heads and towers in self.variants]

    @property
    def tests(self) -> dict[str, tuple[str, dict[str, str]]]:
        """Detection rows: heads, and changes of their policy."""
        rows = {f"{n}, tested {m}": (n, {"mask_mode": m}) for n in self.chosen_heads for m in TEST_MODES}
        if self.policies and "smartclip_hard" in self.chosen_heads:
            rows |= {
                f"smartclip_hard, {n}": ("smartclip_hard", {"mask_mode": "hard", **p}) for n, p in POLICIES.items()
            }
        return rows


def run_grid(task: GridOptions) -> None:
    """Run unfinished steps, seed by seed, and write the tables after each seed."""
    world = ToySteps(task.out, task.data, 0).world()
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
        self.steps = ToySteps(self.out, task.data, seed)

    def stages(self) -> list[list[Step]]:
        """Steps in order."""
        names = list(self.task.variants)
        two_stage = [n for n in names if VARIANTS[n].stages == 2]
        first = [self.one_stage(n) for n in names if n not in two_stage]
        if two_stage and not self.task.pretrained:
            length = epoch_options(self.task.pretrain, validate=True)
            new = {"towers.seed": self.seed}
            first.append(self.steps.alignment("clip-pretrain_toy", self.towers("pretrain"), new, length))
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
        """An alignment from scratch."""
        new, length = {"towers.seed": self.seed}, step_options(self.task.steps)
        return self.steps.alignment(VARIANTS[name].config, self.towers(name), new, length)

    def two_stage(self, name: str) -> Step:
        """An alignment from the pretrained towers."""
        towers: dict[str, Any] = {"towers.checkpoint": self.towers("pretrain")}
        if VARIANTS[name].scorings != ("off",):
            # Of the new mask network.
            towers["towers.seed"] = self.seed
        length = epoch_options(self.task.align, validate=True)
        return self.steps.alignment(VARIANTS[name].config, self.towers(name), towers, length)

    def probe(self, name: str) -> Step:
        """Region probe of one alignment; with the text norm of its training."""
        variant = VARIANTS[name]
        return self.steps.probe(name, self.towers(name), variant.scorings, "masked" if variant.stages == 1 else "full")

    def heads(self, name: str) -> Path:
        """Final checkpoint of a detector."""
        return self.out / f"heads_{name}" / f"epoch_{self.task.detector}.pth"

    def head(self, name: str) -> Step:
        """Heads trained with one mask mode."""
        towers, mode = HEADS[name]
        options = {
            "towers.checkpoint": self.towers(towers),
            "model.policy.mask_mode": mode,
            **epoch_options(self.task.detector, validate=False),
        }
        return self.steps.heads(DETECTOR, self.heads(name), options)

    def test(self, row: str, name: str, policy: dict[str, str]) -> Step:
        """One test of trained heads with changes of the policy."""
        options = {
            "towers.checkpoint": self.towers(HEADS[name][0]),
            **{f"model.policy.{k}": v for k, v in policy.items()},
        }
        return self.steps.test(self.out / f"detection_{slug(row)}.json", DETECTOR, self.heads(name), options)


def slug(name: str) -> str:
    """Convert a name to a file name."""
    return name.replace(", ", "_").replace(" ", "_")
