"""Configs of Hugging Face and open_clip: reading facts about towers that tensors do not show, and writing them.

Settings that change what the towers compute and are not supported here are rejected by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.models.towers.config import TowerConfig
from smartclip_det.models.towers.tokenizer import image_statistics

Facts = dict[str, Any]


def read_json(path: Path) -> Mapping[str, Any]:
    """Read a JSON object from a file.

    Raises:
        UserError: for anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} contains a {type(content).__name__}, not a JSON object.")
    return content


def section(config: Mapping[str, Any], name: str, where: Path) -> Mapping[str, Any]:
    """A section of a config; empty if it is absent or null."""
    content = config.get(name)
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: {name} is a {type(content).__name__}, not an object.")
    return content


# --- Hugging Face ----------------------------------------------------------------------------------------------------

_HF_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_python": "gelu"}
_HF_SIZES = {
    "vision": {
        "image_size": "image_size",
        "patch_size": "patch_size",
        "hidden_size": "vision_width",
        "num_hidden_layers": "vision_layers",
        "num_attention_heads": "vision_heads",
    },
    "text": {
        "max_position_embeddings": "context_length",
        "vocab_size": "vocab_size",
        "hidden_size": "text_width",
        "num_hidden_layers": "text_layers",
        "num_attention_heads": "text_heads",
    },
}


def huggingface_facts(config: Mapping[str, Any], where: Path) -> Facts:
    """Activations, heads and sizes in the ``config.json`` of a CLIP; missing values have transformers' defaults."""
    kind = config.get("model_type", "clip")
    if kind != "clip":
        raise UserError(f"{where} belongs to a {kind!r} model; only model_type 'clip' is supported.")
    facts: Facts = {}
    for side in ("vision", "text"):
        # Folders published in 2022 repeat the section under this name, which takes precedence.
        values = {**section(config, f"{side}_config", where), **section(config, f"{side}_config_dict", where)}
        act = values.get("hidden_act", "quick_gelu")
        if act not in _HF_ACTIVATIONS:
            raise UserError(
                f"{where}: {side}_config.hidden_act is {act!r}; supported: {', '.join(sorted(_HF_ACTIVATIONS))}."
            )
        facts["activation" if side == "vision" else "text_activation"] = _HF_ACTIVATIONS[act]
        eps = values.get("layer_norm_eps", 1e-5)
        if not isinstance(eps, float | int) or abs(eps - 1e-5) > 1e-9:
            raise UserError(f"{where}: {side}_config.layer_norm_eps is {eps!r}; only 1e-05 is supported.")
        facts.update(
            {ours: values[theirs] for theirs, ours in _HF_SIZES[side].items() if values.get(theirs) is not None}
        )
    return facts


def huggingface_config(config: TowerConfig) -> dict[str, Any]:
    """Config from which ``CLIPModel.from_pretrained`` builds the same towers."""
    sides: dict[str, dict[str, Any]] = {
        side: {theirs: getattr(config, ours) for theirs, ours in _HF_SIZES[side].items()} for side in _HF_SIZES
    }
    common = {"projection_dim": config.embed_dim, "layer_norm_eps": 1e-5, "attention_dropout": 0.0}
    sides["vision"].update(
        common,
        model_type="clip_vision_model",
        hidden_act=config.activation,
        intermediate_size=4 * config.vision_width,
        num_channels=3,
    )
    # CLIP's tokenizer has its special tokens last in the vocabulary, and transformers finds the end token by its id.
    sides["text"].update(
        common,
        model_type="clip_text_model",
        hidden_act=config.text_activation or config.activation,
        intermediate_size=4 * config.text_width,
        bos_token_id=config.vocab_size - 2,
        eos_token_id=config.vocab_size - 1,
        pad_token_id=config.vocab_size - 1,
    )
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "text_config": sides["text"],
        "vision_config": sides["vision"],
    }


def huggingface_preprocessor(config: TowerConfig) -> dict[str, Any]:
    """CLIP's image preprocessing, as read by ``AutoImageProcessor``."""
    mean, std = image_statistics()
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": config.image_size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": config.image_size, "width": config.image_size},
        "do_rescale": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


# --- open_clip -------------------------------------------------------------------------------------------------------

#: Settings that change what a tower computes, with the values that this package supports; any other setting must be
#: off.
_OC_PLAIN: dict[str, dict[str, tuple[Any, ...]]] = {
    "vision": {
        "mlp_ratio": (4, 4.0),
        "pool_type": ("tok",),
        "pos_embed_type": ("learnable",),
        "block_type": ("default", "standard"),
        "attn_type": ("default",),
    },
    "text": {
        "mlp_ratio": (4, 4.0),
        "pool_type": ("argmax",),
        "proj_type": ("linear",),
        "block_type": ("default", "standard"),
        "attn_type": ("default",),
    },
}
_OC_SIZES = {
    "vision": {
        "image_size": "image_size",
        "patch_size": "patch_size",
        "width": "vision_width",
        "layers": "vision_layers",
    },
    "text": {
        "context_length": "context_length",
        "vocab_size": "vocab_size",
        "width": "text_width",
        "layers": "text_layers",
        "heads": "text_heads",
    },
}
#: Settings of training, unused outputs, and tensor names.
_OC_ANY = {
    "head_width",
    "patch_dropout",
    "input_patchnorm_dropout",
    "output_tokens",
    "final_ln_after_pool",
    "attn_pooler_queries",
    "attn_pooler_heads",
    "pad_id",
    "bos_id",
    "eos_id",
    "dynamic_img_size",
    "timm_model_pretrained",
    "timm_pool",
    "timm_proj",
    "timm_proj_bias",
    "timm_drop",
    "timm_drop_path",
    "hf_model_pretrained",
    "hf_proj_type",
    "hf_pooler_type",
}
_OC_MODEL = {
    "embed_dim",
    "vision_cfg",
    "text_cfg",
    "quick_gelu",
    "custom_text",
    "init_logit_scale",
    "init_logit_bias",
    "nonscalar_logit_scale",
    "cast_dtype",
    "output_dict",
}


def open_clip_facts(config: Mapping[str, Any], where: Path) -> Facts:
    """Activation, heads and sizes in an ``open_clip_config.json`` (or a model config of open_clip)."""
    model = section(config, "model_cfg", where) if "model_cfg" in config else config
    unsupported = [k for k, v in model.items() if k not in _OC_MODEL and v]
    facts: Facts = {"activation": "quick_gelu" if model.get("quick_gelu") else "gelu"}
    for side in ("vision", "text"):
        values = section(model, f"{side}_cfg", where)
        sizes, plain = _OC_SIZES[side], _OC_PLAIN[side]
        unsupported += [
            f"{side}_cfg.{k}={v!r}"
            for k, v in values.items()
            if k not in sizes and k not in _OC_ANY and v and v not in plain.get(k, ())
        ]
        facts.update({ours: values[theirs] for theirs, ours in sizes.items() if values.get(theirs) is not None})
    if unsupported:
        raise UserError(f"{where} has settings that these towers do not support: {', '.join(unsupported)}.")
    image = facts.get("image_size")
    if isinstance(image, list) and len(set(map(str, image))) == 1:
        facts["image_size"] = image[0]
    width, head = facts.get("vision_width"), section(model, "vision_cfg", where).get("head_width", 64)
    if isinstance(width, int) and isinstance(head, int) and head > 0:
        facts["vision_heads"] = width // head
    return facts


def open_clip_config(config: TowerConfig) -> dict[str, Any]:
    """Config from which open_clip builds the same towers.

    Raises:
        UserError: if the towers have different activations; open_clip has one setting for both.
    """
    if config.text_activation not in ("", config.activation):
        raise UserError(
            f"open_clip has one activation for both towers; these have {config.activation} and "
            f"{config.text_activation}. Use --layout huggingface."
        )
    sides: dict[str, dict[str, Any]] = {
        side: {theirs: getattr(config, ours) for theirs, ours in _OC_SIZES[side].items()} for side in _OC_SIZES
    }
    sides["vision"]["head_width"] = config.vision_width // config.vision_heads
    mean, std = image_statistics()
    return {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "quick_gelu": config.activation == "quick_gelu",
            "vision_cfg": sides["vision"],
            "text_cfg": sides["text"],
        },
        "preprocess_cfg": {"mean": list(mean), "std": list(std)},
    }


def other_statistics(config: Mapping[str, Any]) -> str:
    """Image mean and std in a config if they differ from CLIP's; else empty."""
    values = config.get("preprocess_cfg", config)
    if not isinstance(values, Mapping):
        return ""
    for keys in (("mean", "std"), ("image_mean", "image_std")):
        pair = [values.get(k) for k in keys]
        if all(isinstance(v, list) and len(v) == 3 and all(isinstance(n, float | int) for n in v) for v in pair):
            near = all(
                abs(a - b) < 1e-3
                for v, own in zip(pair, image_statistics(), strict=True)
                for a, b in zip(v or [], own, strict=True)
            )
            return "" if near else f"mean {pair[0]}, std {pair[1]}"
    return ""
