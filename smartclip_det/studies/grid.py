"""A grid on the toy world: alignments x seeds, heads with masks on and off; a table with spread.

Within a seed all variants share the pretrained towers, and only what differs is trained. What is done is not done
again.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import check_choice
from smartclip_det.core.mask_modes import RETRIEVAL_MODES, current_names
from smartclip_det.formats.json_files import read_json
from smartclip_det.protocols.stamp import protocol_stamp, write_results
from smartclip_det.utils.cfg_options import format_options
from smartclip_det.utils.steps import Step, StepRunner, verb

#: Alignments: config, and how their texts are scored.
VARIANTS = {
    "clip": ("clip-align_two-stage_toy", ("off",)),
    "longclip": ("longclip-align_toy", ("off",)),
    "smartclip": ("smartclip-align_two-stage_toy", RETRIEVAL_MODES),
    "non_modular": ("smartclip-align_non-modular_toy", RETRIEVAL_MODES),
    "keep_crops": ("smartclip-align_keep-crops_toy", ("hard", "off")),
    "keep_regions": ("smartclip-align_keep-regions_toy", ("hard", "off")),
    "keep_both": ("smartclip-align_keep-both_toy", ("hard", "off")),
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
    "text norm masked": {"text_norm": "masked"},
    "ceiling calibrated": {"calibration": "ceiling"},
    "background, mask of ones": {"background": "text_ones"},
    "background, zero column": {"background": "zero"},
    "dense not normalised": {"dense_norm": "none"},
    "no fusion": {"fusion": "none"},
}
DETECTOR = "configs/toy/open-vocab-rcnn_smartclip-toy_toy.py"
ALIGNMENT = (
    "map_shape", "map_colour_shape", "map_colour_shape_held_out", "t2i_r1_long", "t2i_r1_short", "t2i_r1_partial",
    "t2i_r1_short_held_out", "t2i_r5_short_held_out",
)  # fmt: skip


@dataclass(frozen=True)
class GridOptions:
    """Which variants, how long, on which seeds.

    Attributes:
        seeds: of weights, order and captions.
        data: the world, one for all seeds.
        out: folder that is written to.
        pretrain: epochs of CLIP from nothing.
        align: epochs of each alignment.
        variants: alignments.
        heads: detector heads of those.
        policies: test one head under further policies.
        pretrained: folder of an earlier study whose pretrained towers are used.
        detector: epochs of each detector; 0 for none.
    """

    seeds: Sequence[int] = (0, 1, 2)
    data: Path = Path("data/toy")
    out: Path = Path("work_dirs/study")
    pretrain: int = 8
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


def run_grid(task: GridOptions) -> None:
    """Run what is not done, seed by seed, and write the table after each."""
    world = Step("world", verb("data make-toy", "--out", str(task.data)), [task.data / "world.json"])
    if not world.outputs[0].is_file():
        StepRunner(task.out).run(world, 1)
    for number, seed in enumerate(task.seeds, 1):
        print(f"seed {seed} ({number} of {len(task.seeds)})", flush=True)
        StepRunner(task.out / f"seed_{seed}").run_stages(Seed(task, seed).stages())
        write_table(task, task.seeds[:number])


class Seed:
    """The steps of one seed."""

    def __init__(self, task: GridOptions, seed: int) -> None:
        self.task, self.seed, self.out = task, seed, task.out / f"seed_{seed}"

    def stages(self) -> list[list[Step]]:
        """Steps in order."""
        stages = [] if self.task.pretrained else [
            [self.alignment("pretrain", "clip-pretrain_toy", self.task.pretrain, {"towers.seed": self.seed})]
        ]  # fmt: skip
        variants = {n: v for n, v in VARIANTS.items() if n in self.task.variants}
        heads = {n: t for n, (t, _) in HEADS.items() if t in variants and n in self.task.heads}
        stages += [
            [self.alignment(n, config, self.task.align, {"towers.checkpoint": self.towers("pretrain"),
                                                         **({} if n == "clip" else {"towers.seed": self.seed})})
             for n, (config, _) in variants.items()],
            [self.probe(n) for n in variants],
        ]  # fmt: skip
        if self.task.detector:
            stages += [[self.head(n) for n in heads],
                       [self.test(n, m, {"mask_mode": m}) for n in heads for m in TEST_MODES],
                       [self.test("smartclip_hard", slug(n), {"mask_mode": "hard", **p})
                        for n, p in POLICIES.items() if self.task.policies and "smartclip_hard" in heads]]  # fmt: skip
        return stages

    def towers(self, name: str) -> Path:
        """Final checkpoint of an alignment."""
        if name == "pretrain" and self.task.pretrained:
            return self.task.pretrained / f"seed_{self.seed}" / name / f"epoch_{self.task.pretrain}.pth"
        return self.out / name / f"epoch_{self.task.pretrain if name == 'pretrain' else self.task.align}.pth"

    def alignment(self, name: str, config: str, epochs: int, source: dict[str, Any]) -> Step:
        """An alignment run."""
        metrics = self.out / f"{name}.metrics.json"
        options = {
            "data_root": f"{self.task.data}/", "randomness.seed": self.seed, "train_cfg.max_epochs": epochs,
            "train_cfg.val_interval": epochs, "param_scheduler.1.T_max": epochs, "param_scheduler.1.end": epochs,
            "train_dataloader.dataset.seed": self.seed, "val_evaluator.metrics_file": metrics, **source,
        }  # fmt: skip
        command = verb(
            "train", f"configs/toy/{config}.py", "--work-dir", str(self.out / name), *format_options(options)
        )
        return Step(name, command, [self.towers(name), metrics])

    def probe(self, name: str) -> Step:
        """The region probe of one alignment."""
        annotations, out = self.task.data / "annotations", self.out / f"probe_{name}.json"
        command = verb(
            "probe", "--encoder", str(self.towers(name)), "--ann",
            str(annotations / "instances_val.json"), "--images", str(self.task.data / "images/val"), "--split-file",
            str(annotations / "split.json"), "--templates", "{article} {}", "--crop-context", "2.0", "--out", str(out),
        )  # fmt: skip
        return Step(f"probe_{name}", command, [out])

    def detector_options(self, name: str) -> dict[str, Any]:
        """Overrides that training and testing share."""
        return {"data_root": f"{self.task.data}/", "towers.checkpoint": self.towers(HEADS[name][0])}

    def head(self, name: str) -> Step:
        """Heads trained with one mask mode."""
        epochs = self.task.detector
        options = {**self.detector_options(name), "model.policy.mask_mode": HEADS[name][1],
                   "randomness.seed": self.seed, "train_cfg.max_epochs": epochs, "train_cfg.val_interval": epochs + 1,
                   "param_scheduler.1.T_max": epochs, "param_scheduler.1.end": epochs}  # fmt: skip
        folder = self.out / f"heads_{name}"
        command = verb("train", DETECTOR, "--work-dir", str(folder), *format_options(options))
        return Step(f"heads_{name}", command, [folder / f"epoch_{epochs}.pth"])

    def test(self, name: str, mode: str, policy: dict[str, str]) -> Step:
        """One test of trained heads under changes of the policy."""
        out = self.out / f"detection_{name}_{mode}.json"
        checkpoint = self.out / f"heads_{name}" / f"epoch_{self.task.detector}.pth"
        options = {**self.detector_options(name), **{f"model.policy.{k}": v for k, v in policy.items()}}
        command = verb("test", DETECTOR, str(checkpoint), "--work-dir", str(self.out / "tests" / out.stem),
                   "--out", str(out), *format_options(options))  # fmt: skip
        return Step(out.stem, command, [out.with_suffix(".metrics.json")])


def slug(name: str) -> str:
    """A name for files."""
    return name.replace(", ", "_").replace(" ", "_")


def numbers_of(task: GridOptions, seed: int) -> dict[str, dict[str, float]]:
    """Rows (variant, scoring) of one seed, each with its numbers."""
    folder = task.out / f"seed_{seed}"
    rows: dict[str, dict[str, float]] = {}
    for name, (_, scorings) in VARIANTS.items():
        if name not in task.variants:
            continue
        found = current_names(read_json(folder / f"{name}.metrics.json", "result file")["metrics"])
        probe = read_json(folder / f"probe_{name}.json", "result file")["metrics"]
        for scoring in scorings:
            row = {k: found[f"{k}_{scoring}"] for k in ALIGNMENT}
            if scoring not in ("hard", "off"):
                rows[f"{name}, {scoring}"] = row
                continue
            row.update({f"{g}_{v}": probe[g][view][scoring] for g in ("base", "novel")
                        for v, view in (("crop", "crop"), ("dense", "dense_value"))})  # fmt: skip
            rows[f"{name}, {scoring}"] = row
    if task.detector:
        heads = [n for n in task.heads if HEADS[n][0] in task.variants]
        tests = {f"heads {n}, tested {m}": f"{n}_{m}" for n in heads for m in TEST_MODES}
        if task.policies and "smartclip_hard" in heads:
            tests |= {f"heads smartclip_hard, {p}": f"smartclip_hard_{slug(p)}" for p in POLICIES}
        for row, file in tests.items():
            found = read_json(folder / f"detection_{file}.metrics.json", "result file")["metrics"]
            rows[row] = {k: found[k] for k in ("base_ap50", "novel_ap50", "all_ap50")}
    return rows


def write_table(task: GridOptions, seeds: list[int]) -> None:
    """Mean and standard deviation over seeds, as JSON and Markdown."""
    by_seed = {seed: numbers_of(task, seed) for seed in seeds}
    table: dict[str, dict[str, dict[str, float]]] = {}
    for row, values in by_seed[seeds[0]].items():
        table[row] = {}
        for key in values:
            got = [by_seed[s][row][key] for s in seeds]
            table[row][key] = {"mean": statistics.fmean(got), "std": statistics.stdev(got) if len(got) > 1 else 0.0}
    stamp = protocol_stamp("study", seeds=seeds, pretrain=task.pretrain, align=task.align, detector=task.detector,
                           data=str(task.data), spread="standard deviation over seeds")  # fmt: skip
    write_results(task.out / "study.json", stamp, table, by_seed={str(s): v for s, v in by_seed.items()})
    (task.out / "study.md").write_text(markdown(table), encoding="utf-8")
    print((task.out / "study.md").read_text(encoding="utf-8"), flush=True)


def markdown(table: dict[str, dict[str, dict[str, float]]]) -> str:
    """One table for each set of columns."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for row, values in table.items():
        groups.setdefault(tuple(values), []).append(row)
    parts = []
    for columns, rows in groups.items():
        lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for row in rows:
            cells = (f"{table[row][c]['mean']:.3f} ± {table[row][c]['std']:.3f}" for c in columns)
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
