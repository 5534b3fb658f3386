"""One training step of each detector family, GPU against CPU, and how often the host synchronises with the GPU in it.

Towers and heads are those of the toy configs, with random weights that depend only on the seed. Needs MMDetection.
"""

from __future__ import annotations

import copy
import logging
import string
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
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
    """Build a step that computes the losses of one batch with a new model of a family.

    Args:
        family: ``two-stage``, ``one-stage``, ``referring`` or ``grounding-dino``.
        device: device of the model.
    """
    from mmengine.registry import init_default_scope

    from smartclip_det import register_detection  # noqa: F401

    init_default_scope("mmdet")
    if family == "grounding-dino":
        model, batch = _grounding_dino(), _sentence_batch()
    elif family == "referring":
        config = _toy_config(family)
        model, batch = _built(config), _referring_batch(config.image_size)
    else:
        config = _toy_config(family)
        model, batch = _built(config), _detection_batch()
        dim = config.bbox_head.embed_dim if family == "one-stage" else config.roi_head.bbox_head.embed_dim
        g = torch.Generator().manual_seed(0)
        parts_of = [(torch.randn(n, dim, generator=g), (torch.rand(n, dim, generator=g) > 0.5).float()) for n in (3, 1)]
        background = TextBank(("background",), *parts_of[1])
        model.set_text_bank(TextBank(CLASSES, *parts_of[0], background=background))
    model.to(device).train()

    def step() -> dict[str, Any]:
        model.zero_grad(set_to_none=True)
        found = model(**model.data_preprocessor(copy.deepcopy(batch), True), mode="loss")
        total, _ = model.parse_losses(found)
        total.backward()
        return found

    return step


def _toy_config(family: str) -> Any:
    """The toy config of a family, without parts whose results depend on the device's random numbers or precision."""
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
    return config.model


def _built(config: Any) -> Any:
    from mmdet.registry import MODELS

    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(config))
    # MMEngine logs the initialisation of every parameter.
    logging.disable(logging.INFO)
    model.init_weights()
    logging.disable(logging.NOTSET)
    return model


def _grounding_dino() -> Any:
    """Grounding DINO with a sentence-level score, as in the published config, at small sizes, with a letter BERT."""
    from transformers import BertConfig, BertModel, BertTokenizer

    from smartclip_det.engine.config import load_config

    towers = {"arch": "SmartCLIP-tiny", "seed": 0}
    name = "smartclip_refexp/mm-grounding-dino-t_smartclip-b16_c1_refcoco.py"
    config = load_config(name, {"towers": towers, "model.trained": "all"}).model
    config.num_queries = 12
    config.backbone.update(embed_dims=24, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], init_cfg=None, with_cp=False)
    config.backbone.drop_path_rate = 0.0
    config.neck.in_channels = [48, 96, 192]
    config.encoder.update(num_layers=1, num_cp=1)
    config.decoder.num_layers = 2
    # Denoising queries are sampled on the device.
    config.dn_cfg.group_cfg.num_dn_queries = 0
    with tempfile.TemporaryDirectory() as folder:
        letters = [*string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase)]
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *letters]
        vocabulary = Path(folder) / "vocab.txt"
        vocabulary.write_text("\n".join(words), encoding="utf-8")
        BertTokenizer(str(vocabulary)).save_pretrained(folder)
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        torch.manual_seed(0)
        bert = BertModel(BertConfig(vocab_size=len(words), **sizes, **dropout), add_pooling_layer=False)
        bert.save_pretrained(folder)
        config.language_model.name = folder
        return _built(config)


def _sentence_batch() -> dict[str, Any]:
    batch = _detection_batch()
    for sample, (text, end) in zip(batch["data_samples"], (("red cup .", 7), ("dog .", 3)), strict=True):
        sample.set_metainfo({"text": text, "custom_entities": False, "tokens_positive": {0: [[0, end]]}})
        sample.gt_instances.labels = torch.zeros_like(sample.gt_instances.labels)
    return batch


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
