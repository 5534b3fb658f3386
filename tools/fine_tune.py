#!/usr/bin/env python
"""Fine-tune a detector on your own boxes, and report what was learned and what zero-shot ability was kept.

    python tools/fine_tune.py CONFIG CHECKPOINT --ann train.json --images train/ --val-ann val.json --val-images val/
    python tools/data/to_coco.py yolo --data data.yaml --split train --out train.json    # from YOLO or VOC labels

The vocabulary is that of the annotation file. Tested before and after: your validation images, and CONFIG's own test
set (its old classes; --no-old leaves it out). --blend 0.5 also tests the mean of old and new weights (WiSE-FT, arXiv
2109.01903), which often keeps most of both. Writes OUT/config.py, report.md and report.json; what is done is not done
again: run the same command to go on.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from mmengine.config import DictAction

from smartclip_det.core.errors import UserError
from smartclip_det.datasets.training_boxes import check_before_training
from smartclip_det.engine.config import load_config
from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.formats.json_files import read_json
from smartclip_det.protocols.stamp import file_hash, protocol_stamp, write_results
from smartclip_det.utils.cli import run_tool
from smartclip_det.utils.files import write_whole
from smartclip_det.utils.safe_load import safe_torch_load
from smartclip_det.utils.steps import Step, StepRunner, settings

CONFIG = """# Written by tools/fine_tune.py: {base} on own boxes.
_base_ = "{base}"
load_from = "{checkpoint}"
names = dict(vocabulary="annotations", seen=None, seen_only=False, annotated_only=False, data_root="", indices=None)
train_dataloader = dict(
    batch_size={batch_size},
    dataset=dict(
        type="OpenVocabCocoDataset", ann_file="{ann}", data_prefix=dict(img="{images}"),
        filter_cfg=dict(filter_empty_gt=True, min_size=1), **names,
    ),
)
val_dataloader = dict(
    dataset=dict(type="OpenVocabCocoDataset", ann_file="{val_ann}", data_prefix=dict(img="{val_images}"), **names)
)
test_dataloader = val_dataloader
val_evaluator = dict(
    _delete_=True, type="OpenVocabMetric", ann_file="{val_ann}", protocol="coco"
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


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config of the detector to start from")
    parser.add_argument("checkpoint", help="its weights")
    parser.add_argument("--ann", type=Path, required=True, help="COCO json of your training boxes")
    parser.add_argument("--images", type=Path, required=True, help="folder of their images")
    parser.add_argument("--val-ann", type=Path, required=True, help="COCO json of your validation boxes")
    parser.add_argument("--val-images", type=Path, help="folder of their images; default: --images")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, help="default: a tenth of the config's own")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--blend", type=float, default=0.0, help="share of new weights in a blend to test; 0: none")
    parser.add_argument("--no-old", action="store_true", help="do not test on the config's own test set")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/fine_tune"))
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="for every step")
    return parser.parse_args()


def main() -> None:
    """Test, train, test, report."""
    args = parse_args()
    args.val_images = args.val_images or args.images
    check(args)
    args.out.mkdir(parents=True, exist_ok=True)
    config = write_whole(args.out / "config.py", own_config(args))
    weights = {"before": Path(args.checkpoint), "after": args.out / "run" / f"epoch_{args.epochs}.pth"}
    runner = StepRunner(args.out)
    runner.run_stages([tests(args, config, "before", weights["before"]), [training(args, config, weights["after"])],
                       tests(args, config, "after", weights["after"])])  # fmt: skip
    if args.blend:
        weights["blended"] = args.out / f"blend_{args.blend:g}.pth"
        blend(weights["before"], weights["after"], args.blend, weights["blended"])
        runner.run_stages([tests(args, config, "blended", weights["blended"])])
    report(args, weights)


def check(args: argparse.Namespace) -> None:
    """Refuse what would fail later, when hours are spent."""
    if not Path(args.checkpoint).is_file():
        raise UserError(f"No checkpoint at {args.checkpoint}.")
    if args.epochs < 1 or not 0 <= args.blend < 1:
        raise UserError(f"--epochs must be at least 1 and --blend in [0, 1); given {args.epochs} and {args.blend}.")
    check_before_training(args.ann, args.images, args.val_ann, args.val_images)


def own_config(args: argparse.Namespace) -> str:
    """The text of the config."""
    base = load_config(args.config)
    if not base.get("optim_wrapper"):
        raise UserError(f"{args.config} is for testing only: it has no optimizer. Give a config that trains.")
    images = len(load_ground_truth(args.ann).data["images"])
    return CONFIG.format(
        base=os.path.relpath(args.config, args.out), checkpoint=Path(args.checkpoint).resolve(),
        ann=args.ann.resolve(), images=f"{args.images.resolve()}/", val_ann=args.val_ann.resolve(),
        val_images=f"{args.val_images.resolve()}/", epochs=args.epochs, batch_size=args.batch_size,
        lr=args.lr or base.optim_wrapper.optimizer.lr / 10, warmup=max(1, min(100, images // args.batch_size)),
    )  # fmt: skip


def training(args: argparse.Namespace, config: Path, weights: Path) -> Step:
    """The fine-tuning."""
    command = ["tools/train.py", str(config), "--work-dir", str(args.out / "run"), *options(args)]
    return Step("train", command, [weights])


def tests(args: argparse.Namespace, config: Path, when: str, weights: Path) -> list[Step]:
    """Your classes and, where asked for, the old ones."""
    steps = []
    for what, path in [("own", config), *([] if args.no_old else [("old", Path(args.config))])]:
        out = args.out / f"{when}_{what}.json"
        command = ["tools/test.py", str(path), str(weights), "--work-dir", str(args.out / "tests" / out.stem), "--out",
                   str(out), *options(args)]  # fmt: skip
        steps.append(Step(out.stem, command, [out.with_suffix(".metrics.json")]))
    return steps


def options(args: argparse.Namespace) -> list[str]:
    """``--cfg-options`` of every step."""
    return settings(args.cfg_options) if args.cfg_options else []


def blend(before: Path, after: Path, share: float, out: Path) -> None:
    """Write ``(1 - share) * before + share * after``."""
    old, new = (safe_torch_load(p)["state_dict"] for p in (before, after))
    mixed = {
        k: torch.lerp(old[k].float(), v.float(), share).to(v.dtype) if v.is_floating_point() and k in old else v
        for k, v in new.items()
    }
    torch.save({"state_dict": mixed, "meta": {"blend": share}}, out)


def report(args: argparse.Namespace, weights: dict[str, Path]) -> None:
    """The table of before, after and blended."""
    subjects = ["own"] if args.no_old else ["own", "old"]
    found: dict[str, dict[str, Any]] = {
        w: {n: read_json(args.out / f"{n}_{w}.metrics.json", "result file") for n in weights} for w in subjects
    }
    lines = ["# What was learned, and what was kept", ""]
    titles = {"own": "Your validation images", "old": "The config's own test set (old classes)"}
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    for what, by_weights in found.items():
        metrics[what] = {n: r["metrics"] for n, r in by_weights.items()}
        lines += [f"## {titles[what]}", "", f"| | {' | '.join(weights)} |", "|---" * (len(weights) + 1) + "|"]
        rows = [k for k in metrics[what]["before"] if "AR@" not in k and "AR_" not in k]
        lines += [f"| {k} | " + " | ".join(number(metrics[what][n].get(k)) for n in weights) + " |" for k in rows]
        per_class = {n: r["per_class"] for n, r in by_weights.items()}
        lines += ["", "AP by class:", "", f"| | {' | '.join(weights)} |", "|---" * (len(weights) + 1) + "|"]
        lines += [f"| {c} | " + " | ".join(number(per_class[n].get(c)) for n in weights) + " |"
                  for c in per_class["before"]] + [""]  # fmt: skip
    text = "\n".join(lines)
    write_whole(args.out / "report.md", text)
    stamp = protocol_stamp(
        "fine_tune", config=args.config, checkpoints={n: file_hash(p) for n, p in weights.items()}, ann=str(args.ann),
        val_ann=str(args.val_ann), epochs=args.epochs, blend=args.blend,
    )  # fmt: skip
    write_results(args.out / "report.json", stamp, metrics,
                  per_class={w: {n: r["per_class"] for n, r in f.items()} for w, f in found.items()})  # fmt: skip
    print(text)
    print(f"written: {args.out / 'report.md'} and report.json")


def number(value: float | None) -> str:
    """Four digits, or n/a."""
    return "n/a" if value is None or value < 0 else f"{value:.4f}"


if __name__ == "__main__":
    run_tool(main)
