"""One training step of each detector family, GPU against CPU, and how often the host synchronises with the GPU in it.

Towers and heads are those of the toy configs, with random weights that depend only on the seed. Needs MMDetection.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch

from smartclip_det.core.text_bank import TextBank

CLASSES = ("cup", "dog", "bird")
SIDE = 128


def losses_of(step: Callable[[], dict[str, Any]]) -> float:
    """Return the sum of a step's losses, with a fixed seed."""
    torch.manual_seed(0)
    losses = step()
    parts = [v for k, value in losses.items() if "loss" in k for v in (value if isinstance(value, list) else [value])]
    return float(sum(float(p.detach()) for p in parts))


def waits_of(step: Callable[[], Any]) -> int | None:
    """Count host-device synchronisations in a step, after a warm-up step; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in caught)


def build_step(family: str, device: str) -> Callable[[], dict[str, Any]]:
    """Return a function that computes the losses of one batch with a new model of a family on a device."""
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    from smartclip_det import register_detection  # noqa: F401
    from smartclip_det.engine.config import fit_norm_layers, load_config

    names = {"two-stage": "open-vocab-rcnn", "one-stage": "open-vocab-owl", "referring": "referring"}
    config = load_config(f"toy/{names[family]}_smartclip-toy_toy.py")
    fit_norm_layers(config, distributed=False)
    if family == "two-stage":
        # Disable sampling: the order of random numbers differs between devices.
        for part in ("rpn", "rcnn"):
            config.model.train_cfg[part].sampler.num = 1_000_000
        config.model.backbone.precision = "fp32"
    if family == "referring":
        config.model.head.dropout = 0.0
    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(config.model))
    # MMEngine logs the initialisation of every weight.
    logging.disable(logging.INFO)
    model.init_weights()
    logging.disable(logging.NOTSET)
    if family != "referring":
        g = torch.Generator().manual_seed(0)
        dim = config.model.bbox_head.embed_dim if family == "one-stage" else config.model.roi_head.bbox_head.embed_dim
        rows = [(torch.randn(n, dim, generator=g), (torch.rand(n, dim, generator=g) > 0.5).float()) for n in (3, 1)]
        background = TextBank(("background",), *rows[1])
        model.set_text_bank(TextBank(CLASSES, *rows[0], background=background))
    model.to(device).train()
    batch = _referring_batch(config.model.image_size) if family == "referring" else _detection_batch()

    def step() -> dict[str, Any]:
        model.zero_grad(set_to_none=True)
        losses = model(**model.data_preprocessor(copy.deepcopy(batch), True), mode="loss")
        total, _ = model.parse_losses(losses)
        total.backward()
        return losses

    return step


def _pixels(side: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=g) for _ in range(2)]


def _detection_batch() -> dict[str, Any]:
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    samples = []
    for n in range(2):
        size = (SIDE, SIDE)
        s = DetDataSample(metainfo={"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0), "img_id": n})
        boxes = torch.tensor([[8.0, 8, 80, 80], [40.0, 20, 120, 100]])
        s.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([n, 2]))
        s.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        samples.append(s)
    return {"inputs": _pixels(SIDE), "data_samples": samples}


def _referring_batch(side: int) -> dict[str, Any]:
    from mmengine.structures import BaseDataElement

    facts = {
        "sentences": ["a red cup", "the dog on the left"],
        "sentence_ids": [0, 1],
        "scale": (1.0, 1.0),
        "ori_shape": (side, side),
        "boxes": [torch.tensor([[8.0, 8, 60, 60]]), torch.zeros(0, 4)],
    }
    return {"inputs": _pixels(side), "data_samples": [BaseDataElement(metainfo=copy.deepcopy(facts)) for _ in range(2)]}
