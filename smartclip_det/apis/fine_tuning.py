"""Fine-tune a detector on custom boxes: tests before and after, an average of weights, and a report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from smartclip_det.core.errors import UserError
from smartclip_det.datasets.training_boxes import check_before_training
from smartclip_det.engine.config import load_config
from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.formats.json_files import read_json
from smartclip_det.protocols.stamp import file_hash, protocol_stamp, write_results
from smartclip_det.utils.cfg_options import format_options
from smartclip_det.utils.config_files import find_config
from smartclip_det.utils.files import write_whole
from smartclip_det.utils.safe_load import safe_torch_load
from smartclip_det.utils.steps import Step, StepRunner, verb

CONFIG = """# Written by smartclip-det fine-tune: custom boxes.
_base_ = {base}
# A changed file is a changed config, so that the same command starts again with it.
input_hashes = {hashes}
load_from = {checkpoint}
names = dict(vocabulary="annotations", seen=None, seen_only=False, annotated_only=False, data_root="", indices=None)
train_dataloader = dict(
    batch_size={batch_size},
    dataset=dict(
        type="OpenVocabCocoDataset", ann_file={ann}, data_prefix=dict(img={images}),
        filter_cfg=dict(filter_empty_gt=True, min_size=1), **names,
    ),
)
val_dataloader = dict(
    dataset=dict(type="OpenVocabCocoDataset", ann_file={val_ann}, data_prefix=dict(img={val_images}), **names)
)
test_dataloader = val_dataloader
val_evaluator = dict(
    _delete_=True, type="OpenVocabMetric", ann_file={val_ann}, protocol="coco"
)
test_evaluator = val_evaluator
train_cfg = dict(max_epochs={epochs}, val_interval={epochs})
optim_wrapper = dict(optimizer=dict(lr={lr}))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end={warmup}),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=0, end={epochs}, T_max={epochs}, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=10))
"""


#: Packaged config by patch size, tower width and embedding dimension.
CONFIGS = {
    (16, 768, 512): "ov_coco/open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco.py",
    (14, 1024, 768): "ov_coco/open-vocab-rcnn_smartclip-l14_8xb8-3e_ov-coco.py",
}


@dataclass(frozen=True)
class FineTuneOptions:
    """Options of fine-tuning.

    Attributes:
        config: config of the initial detector; None with ``encoder``: a packaged config for these towers.
        checkpoint: weights of the initial detector; None with ``encoder``.
        ann: COCO json of the training boxes.
        images: folder of the training images.
        val_ann: COCO json of the validation boxes.
        val_images: folder of the validation images; None: ``images``.
        epochs: training epochs.
        lr: learning rate; None: a tenth of the config's value, or the config's value with ``encoder``.
        batch_size: images per step.
        blend: weight of the new parameters in an average that is also tested; 0: no average.
        old: also test on the config's own test set.
        out: output folder.
        cfg_options: overrides for every step.
        encoder: start from towers alone, a file or a name. The heads of the config are randomly initialised, so there
            is no test before training, no average and no old vocabulary to preserve.
    """

    config: str | Path | None
    checkpoint: str | Path | None
    ann: Path
    images: Path
    val_ann: Path
    val_images: Path | None = None
    epochs: int = 12
    lr: float | None = None
    batch_size: int = 4
    blend: float = 0.0
    old: bool = True
    out: Path = Path("work_dirs/fine_tune")
    cfg_options: Mapping[str, Any] | None = None
    encoder: str | Path | None = None

    @property
    def tests_old(self) -> bool:
        """Whether to test on the config's own test set; not with ``encoder``, as there are no old heads."""
        return self.old and self.encoder is None

    @property
    def val_folder(self) -> Path:
        """Folder of the validation images."""
        return self.val_images or self.images


def fine_tune(options: FineTuneOptions) -> str:
    """Test, train, test, report; finished steps are skipped.

    Returns:
        The report as Markdown; also written as ``report.md`` and ``report.json`` in ``out``.

    Raises:
        UserError: for inputs that would fail later, after hours of training; or a failed step, with its log tail.
    """
    check(options)
    options.out.mkdir(parents=True, exist_ok=True)
    base = base_config(options)
    config = write_config(options, base)
    weights = {} if options.checkpoint is None else {"before": Path(options.checkpoint)}
    weights["after"] = options.out / "run" / f"epoch_{options.epochs}.pth"
    runner = StepRunner(options.out)
    stages = [tests(options, config, when, path) for when, path in weights.items()]
    runner.run_stages([*stages[:-1], [training(options, config, weights["after"])], stages[-1]])
    if options.blend:
        weights["blended"] = options.out / f"blend_{options.blend:g}.pth"
        blend(weights["before"], weights["after"], options.blend, weights["blended"])
        runner.run_stages([tests(options, config, "blended", weights["blended"])])
    return report(options, weights)


def check(options: FineTuneOptions) -> None:
    """Reject inputs that would fail later, after hours of training."""
    if options.encoder is None:
        if options.config is None or options.checkpoint is None:
            raise UserError(
                "Give CONFIG and CHECKPOINT of the initial detector, or --encoder NAME to start from towers alone."
            )
        if not Path(options.checkpoint).is_file():
            raise UserError(f"No checkpoint at {options.checkpoint}.")
    elif options.checkpoint is not None or options.blend:
        raise UserError("--encoder starts from towers alone, with new heads: drop CHECKPOINT and --blend.")
    if options.epochs < 1 or not 0 <= options.blend < 1:
        raise UserError(f"--epochs must be at least 1 and --blend in [0, 1); got {options.epochs} and {options.blend}.")
    check_before_training(options.ann, options.images, options.val_ann, options.val_folder)


def base_config(options: FineTuneOptions) -> str | Path:
    """Return the config to start from; for towers alone, write one that refers to them to ``towers.py``.

    Raises:
        UserError: for towers without a packaged config.
    """
    if options.encoder is None:
        return find_config(str(options.config))
    from smartclip_det.models.towers.source import load_towers

    chosen = options.config
    if chosen is None:
        shape = load_towers({"checkpoint": str(options.encoder)}).config
        key = (shape.patch_size, shape.vision_width, shape.embed_dim)
        if key not in CONFIGS:
            raise UserError(
                f"{options.encoder} has patch size {key[0]}, width {key[1]} and embedding dimension {key[2]}; there "
                f"are packaged configs for ViT-B/16 and ViT-L/14 only. Pass CONFIG of a detector for these towers."
            )
        chosen = CONFIGS[key]
    named = load_config(chosen, {"towers.checkpoint": str(options.encoder)})
    write_whole(options.out / "towers.py", named.pretty_text)
    return options.out / "towers.py"


def write_config(options: FineTuneOptions, base_path: str | Path) -> Path:
    """Write ``config.py``, which needs no further overrides: those of this run are in it."""
    path = write_whole(options.out / "config.py", own_config(options, base_path))
    return write_whole(path, load_config(path, options.cfg_options).pretty_text)


def own_config(options: FineTuneOptions, base_path: str | Path) -> str:
    """Generate the text of the fine-tuning config."""
    base = load_config(base_path)
    if not base.get("optim_wrapper"):
        raise UserError(f"{options.config} has no optimizer: it is for testing only. Use a training config.")
    images = len(load_ground_truth(options.ann).data["images"])
    start = None if options.checkpoint is None else str(Path(options.checkpoint).resolve())
    inputs = {"ann": options.ann, "val_ann": options.val_ann, **({"checkpoint": Path(start)} if start else {})}
    return CONFIG.format(
        base=repr(os.path.relpath(base_path, options.out)),
        checkpoint=repr(start),
        hashes=repr({n: file_hash(p) for n, p in inputs.items()}),
        ann=repr(str(options.ann.resolve())),
        images=repr(f"{options.images.resolve()}/"),
        val_ann=repr(str(options.val_ann.resolve())),
        val_images=repr(f"{options.val_folder.resolve()}/"),
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr or base.optim_wrapper.optimizer.lr / (1 if options.encoder else 10),
        warmup=max(1, min(100, images // options.batch_size)),
    )


def training(options: FineTuneOptions, config: Path, weights: Path) -> Step:
    """Return the training step."""
    work_dir = options.out / "run"
    return Step("train", verb("train", str(config), "--work-dir", str(work_dir)), [weights], work_dir)


def tests(options: FineTuneOptions, config: Path, when: str, weights: Path) -> list[Step]:
    """Return the test steps: your classes and, if requested, the old ones."""
    steps = []
    old = [("old", Path(options.config))] if options.config is not None and options.tests_old else []
    for what, path in [("own", config), *old]:
        overrides = format_options(options.cfg_options or {}) if what == "old" else []
        out = options.out / f"{when}_{what}.json"
        command = verb(
            "test",
            str(path),
            str(weights),
            "--work-dir",
            str(options.out / "tests" / out.stem),
            "--out",
            str(out),
            *overrides,
        )
        steps.append(Step(out.stem, command, [out.with_suffix(".metrics.json")]))
    return steps


def blend(before: Path, after: Path, share: float, out: Path) -> None:
    """Write ``(1 - share) * before + share * after``."""
    old, new = (safe_torch_load(p)["state_dict"] for p in (before, after))
    mixed = {
        k: torch.lerp(old[k].float(), v.float(), share).to(v.dtype) if v.is_floating_point() and k in old else v
        for k, v in new.items()
    }
    torch.save({"state_dict": mixed, "meta": {"blend": share}}, out)


def report(options: FineTuneOptions, weights: dict[str, Path]) -> str:
    """Write and return the table of metrics before, after and blended."""
    subjects = ["own", "old"] if options.tests_old else ["own"]
    results: dict[str, dict[str, Any]] = {
        w: {n: read_json(options.out / f"{n}_{w}.metrics.json", "result file") for n in weights} for w in subjects
    }
    lines = [
        "# Fine-tuning: your classes and the old ones" if options.encoder is None else "# Fine-tuning: your classes",
        "",
    ]
    if options.encoder is not None:
        lines += [
            f"Trained from {options.encoder} alone: the heads were randomly initialised, so there is no test "
            "before training.",
            "",
        ]
    titles = {"own": "Your validation images", "old": "The config's own test set (old classes)"}
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    for what, by_weights in results.items():
        metrics[what] = {n: r["metrics"] for n, r in by_weights.items()}
        lines += [f"## {titles[what]}", "", f"| | {' | '.join(weights)} |", "|---" * (len(weights) + 1) + "|"]
        rows = [k for k in metrics[what]["after"] if "AR@" not in k and "AR_" not in k]
        lines += [f"| {k} | " + " | ".join(number(metrics[what][n].get(k)) for n in weights) + " |" for k in rows]
        per_class = {n: r["per_class"] for n, r in by_weights.items()}
        lines += ["", "AP by class:", "", f"| | {' | '.join(weights)} |", "|---" * (len(weights) + 1) + "|"]
        lines += [
            f"| {c} | " + " | ".join(number(per_class[n].get(c)) for n in weights) + " |" for c in per_class["after"]
        ] + [""]
    text = "\n".join(lines)
    write_whole(options.out / "report.md", text)
    stamp = protocol_stamp(
        "fine_tune",
        config=options.config and str(options.config),
        encoder=options.encoder and str(options.encoder),
        checkpoints={n: file_hash(p) for n, p in weights.items()},
        ann=str(options.ann),
        val_ann=str(options.val_ann),
        epochs=options.epochs,
        blend=options.blend,
    )
    write_results(
        options.out / "report.json",
        stamp,
        metrics,
        per_class={w: {n: r["per_class"] for n, r in f.items()} for w, f in results.items()},
    )
    return text


def number(value: float | None) -> str:
    """Format with four digits, or n/a."""
    return "n/a" if value is None or value < 0 else f"{value:.4f}"
