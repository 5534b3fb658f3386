"""Roofline estimate of training steps, alignment and two-stage detector, with each optimisation and its baseline.

Estimates use GPU data sheets; see :mod:`counting`. The detector's part needs MMDetection.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from smartclip_det.models.alignment import SmartCLIPAlignment
from smartclip_det.models.towers import SmartCLIP
from smartclip_det.models.towers.transformer import MLP
from smartclip_det.studies.benchmarks.counting import CARDS, Operator, by_operator, estimate, fused, record

#: Bytes that AdamW moves per fp32 parameter: the fused kernel reads weight, gradient and two moments and writes three;
#: torch's foreach implementation makes nine passes.
ADAMW_BYTES = {"fused": 28, "foreach": 80}
#: RoIs per image in training.
ROIS = 512


def run(arch: str, batch: int, images: int) -> dict[str, Any]:
    """Estimate alignment of ``batch`` pairs and, if MMDetection is installed, detection on ``images`` images."""
    found: dict[str, Any] = {"alignment": alignment(arch, batch)}
    if importlib.util.find_spec("mmdet") is None:
        print("Detector skipped: MMDetection is not installed.")
        return found
    found["detection"] = {
        "B/16, 640 px": detection("open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco.py", images, 640),
        "L/14, 896 px": detection("open-vocab-rcnn_smartclip-l14_8xb8-3e_ov-coco.py", images, 896),
    }
    return found


# --- alignment --------------------------------------------------------------------------------------------------------


@contextmanager
def plain_quick_gelu() -> Iterator[None]:
    """Run QuickGELU as three kernels."""
    before = MLP.folds
    MLP.folds = lambda self, x: False  # type: ignore[method-assign]
    try:
        yield
    finally:
        MLP.folds = before  # type: ignore[method-assign]


def alignment_step(arch: str, batch: int, **options: Any) -> tuple[list[Operator], float]:
    """Operators of forward and backward pass of the published recipe, with full-length texts; GiB saved."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = SmartCLIPAlignment({"arch": arch, "seed": 0, "mask_pad": "include"}, **options).train()
        config = model.towers.config
        pixels = torch.empty(batch, 3, config.image_size, config.image_size, dtype=torch.uint8)
        length, rows = config.context_length, torch.empty(batch, dtype=torch.long)
        tokens = torch.empty(batch, length, dtype=torch.long)
        texts = {"tokens": tokens, "lengths": (length,) * batch, "order": rows, "back": rows}

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                losses = model(pixels, [None] * batch, mode="loss", texts=texts)
            sum(v for k, v in losses.items() if k.startswith("loss")).backward()

        return record(step)


def parameters(arch: str) -> int:
    """Number of trained parameters of an alignment model."""
    with FakeTensorMode():
        model = SmartCLIPAlignment({"arch": arch, "seed": 0})
        return sum(p.numel() for p in model.parameters() if p.requires_grad)


def alignment(arch: str, batch: int) -> dict[str, Any]:
    """The bf16 step as trained, before and after each optimisation."""
    with plain_quick_gelu():
        before = alignment_step(arch, batch)
    now = alignment_step(arch, batch)
    half = alignment_step(arch, batch, half_residuals=True)
    variants = {
        "QuickGELU in three kernels": before,
        "as trained": now,
        "half residuals": half,
        "blocks compiled": (fused(now[0]), now[1]),
        "blocks compiled, half residuals": (fused(half[0]), half[1]),
    }
    out = {name: summary(operators, gib) for name, (operators, gib) in variants.items()}
    count = parameters(arch)
    optimizer = {
        form: {name: 1e3 * size * count / (card.bandwidth * 0.8) for name, card in CARDS.items()}
        for form, size in ADAMW_BYTES.items()
    }
    show(f"alignment, {arch}, {batch} pairs, bf16: forward and backward pass", out)
    print(f"AdamW of {count / 1e6:.0f} million parameters, ms: {optimizer}")
    by_name = by_operator(now[0], CARDS["H100"])
    for row in by_name:
        print("  {operator:52s} {dtype:9s} {calls:5d} calls {milliseconds:8.2f} ms".format(**row))
    return {"variants": out, "operators": by_name, "adamw_milliseconds": optimizer, "batch": batch, "arch": arch}


# --- detection --------------------------------------------------------------------------------------------------------


def detection(config: str, images: int, side: int) -> dict[str, Any]:
    """A two-stage step without assignment and NMS: frozen tower, then neck, RPN head and box head, in fp32 and bf16."""
    variants = {}
    for name, tower, neck in (("fp32", False, False), ("bf16 tower and neck", True, True)):
        operators = detection_step(config, images, side, tower, neck)
        whole = [op for part in operators.values() for op in part]
        variants[name] = {
            **summary(whole, None),
            "parts": {part: estimate(ops, CARDS["H100"])["milliseconds"] for part, ops in operators.items()},
        }
    show(f"detection, {config}, {images} images of {side} px", variants)
    for name, row in variants.items():
        print(f"  {name}, H100, ms: " + ", ".join(f"{p} {v:.1f}" for p, v in row["parts"].items()))
    return variants


def detection_step(config: str, images: int, side: int, tower_bf16: bool, neck_bf16: bool) -> dict[str, list[Operator]]:
    """Operators by part."""
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    from smartclip_det import register_detection  # noqa: F401
    from smartclip_det.engine.config import fit_norm_layers, load_config

    cfg = load_config(f"ov_coco/{config}")
    logging.disable(logging.WARNING)
    fit_norm_layers(cfg, distributed=False)
    logging.disable(logging.NOTSET)
    init_default_scope("mmdet")
    model = cfg.model
    with FakeTensorMode(allow_non_fake_inputs=True):
        tower = SmartCLIP.from_arch(model.backbone.towers.arch).image_tower
        neck = torch.nn.Sequential(*(MODELS.build(n) for n in model.neck)).train()
        rpn, box = MODELS.build(model.rpn_head), MODELS.build(model.roi_head.bbox_head)
        pixels = torch.empty(images, 3, side, side)
        taps: list[Tensor] = []

        def encode() -> None:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=tower_bf16):
                found = tower.features(pixels, taps=model.backbone.out_indices, dense_mode="value")
            taps[:] = found.taps

        def train_heads() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=neck_bf16):
                pyramid = neck(tuple(taps))
            levels = [level.float() for level in pyramid]
            regions = torch.empty(images * ROIS, levels[0].shape[1], 7, 7, requires_grad=True)
            outputs = [*(x for level in rpn(levels) for x in level), *box(regions)]
            sum(x.float().sum() for x in outputs).backward()

        return {"tower": record(encode)[0], "neck and heads": record(train_heads)[0]}


# --- tables -----------------------------------------------------------------------------------------------------------


def summary(operators: Sequence[Operator], gib: float | None) -> dict[str, Any]:
    """FLOPs, bytes, kernels, and the estimate for each GPU."""
    return {
        "teraflop": sum(op.flop for op in operators) / 1e12,
        "gigabytes": sum(op.bytes for op in operators) / 1e9,
        "kernels": len(operators),
        "saved_gib": gib,
        **{name: estimate(operators, card) for name, card in CARDS.items()},
    }


def show(title: str, rows: dict[str, dict[str, Any]]) -> None:
    """Print a line per variant."""
    print(f"\n{title}")
    for name, row in rows.items():
        saved = "" if row["saved_gib"] is None else f", saved {row['saved_gib']:.1f} GiB"
        cards = "; ".join(
            f"{card} {row[card]['milliseconds']:.1f} ms, {row[card]['share_of_peak']:.0%} of its bf16 peak "
            f"(bound {row[card]['bound_milliseconds']:.1f} ms)"
            for card in CARDS
        )
        print(f"  {name:32s} {row['teraflop']:.1f} TFLOP, {row['gigabytes']:.0f} GB{saved}: {cards}")
