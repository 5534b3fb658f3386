"""Models of other projects with random weights, if their packages are installed; else None."""

from __future__ import annotations

import importlib.util
import string
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smartclip_det.studies.benchmarks.measuring import in_turns, show


def _transformers() -> bool:
    return importlib.util.find_spec("transformers") is not None


def open_clip_tower(size: int, device: str) -> Callable[[Tensor], Any] | None:
    """open_clip's ViT-B-16 image tower with resized position embeddings."""
    from smartclip_det.models.towers.tokenizer import open_clip_model

    visual = open_clip_model("ViT-B-16", None, size).visual.eval().to(device)
    return lambda image: visual(image)


def transformers_tower(size: int, device: str) -> Callable[[Tensor], Any] | None:
    """Transformers' CLIP ViT-B/16 vision model with SDPA attention and interpolated positions."""
    if not _transformers():
        return None
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        patch_size=16,
        image_size=224,
        attn_implementation="sdpa",
    )
    model = CLIPVisionModel(config).eval().to(device)
    return lambda image: model(image, interpolate_pos_encoding=True)


def owlv2(size: int, classes: int, device: str) -> Callable[[Tensor], Any] | None:
    """OWLv2-B/16: image encoder, box head, class head on cached class vectors, and its post-processing."""
    if not _transformers():
        return None
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    config = Owlv2Config()
    config.vision_config.image_size = size
    config.vision_config.patch_size = 16
    model = Owlv2ForObjectDetection(config).eval().to(device)
    queries = torch.nn.functional.normalize(torch.randn(1, classes, config.text_config.hidden_size), dim=-1).to(device)

    def run(image: Tensor) -> Any:
        features, _ = model.image_embedder(pixel_values=image)
        flat = features.flatten(1, 2)
        boxes = model.box_predictor(flat, features)
        logits, _ = model.class_predictor(flat, queries)
        scores, labels = logits.sigmoid().max(dim=-1)
        return boxes, scores, labels, model.objectness_predictor(flat)

    return run


def grounding_dino(size: int, device: str) -> Callable[[Tensor, int], Any] | None:
    """MMDetection's MM-Grounding-DINO-T with a random BERT; names are encoded at each call, in chunks of 40."""
    if not _transformers():
        return None
    import mmdet
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmdet.utils import get_test_pipeline_cfg  # noqa: F401 (registers MMDetection's modules)
    from mmengine.config import Config
    from mmengine.hub import get_config  # noqa: F401
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = Path(tempfile.mkdtemp(prefix="bert_"))
    pieces = [*string.ascii_lowercase, *string.digits]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "thing", *pieces, *(f"##{c}" for c in pieces)]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    BertModel(BertConfig(), add_pooling_layer=False).save_pretrained(folder)
    name = "mm_grounding_dino/grounding_dino_swin-t_pretrain_obj365.py"
    config = Config.fromfile(Path(mmdet.__file__).parent / ".mim/configs" / name)
    config.model.language_model.name = str(folder)
    config.model.backbone.init_cfg = None
    config.model.encoder.num_cp = 0  # no activation checkpointing, which needs fairscale
    config.model.test_cfg.chunked_size = 40
    model = MODELS.build(config.model).eval().to(device)

    def run(image: Tensor, classes: int) -> Any:
        # MMDetection splits a string into chunks of characters, so pass a tuple.
        names = tuple(f"thing{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676)}" for i in range(classes))
        shape = tuple(image.shape[-2:])
        meta = {
            "img_shape": shape,
            "ori_shape": shape,
            "batch_input_shape": shape,
            "pad_shape": shape,
            "scale_factor": (1.0, 1.0),
            "text": names,
            "custom_entities": True,
            "img_id": 1,
        }
        return model.predict(image, [DetDataSample(metainfo=meta)])

    return run


def against_owlv2(
    title: str, ours: Callable[[int], dict[str, Callable[[], Any]]], image: Tensor, sizes: Sequence[int], rounds: int
) -> dict[str, Any]:
    """Benchmark our variants against OWLv2-B/16 with cached classes, interleaved, for each vocabulary size.

    Args:
        title: what is compared, for the printed tables.
        ours: returns the variants for a vocabulary of that size; one is named "ours".
        image: ``[1, 3, S, S]`` input of OWLv2, on the device of the comparison.
        sizes: vocabulary sizes.
        rounds: timed runs of each variant.

    Returns:
        Timings by vocabulary size and variant, see :func:`in_turns`; without transformers, of ours alone.
    """
    size, device = image.shape[-1], str(image.device)
    out: dict[str, Any] = {}
    for k in sizes:
        variants = ours(k)
        peer = owlv2(size, k, device)
        if peer is None:
            print("OWLv2: transformers is not installed, skipped")
        else:
            variants["OWLv2-B/16, cached classes"] = lambda run=peer: run(image)
        with torch.no_grad():
            out[str(k)] = in_turns(variants, rounds)
        show(f"{title} and OWLv2, {size} px, {k} names, {device}", out[str(k)], "ours")
    return out
