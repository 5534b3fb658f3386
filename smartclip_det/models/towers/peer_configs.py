"""Configs of Hugging Face and open_clip: the facts about towers that their tensors do not tell, and the way back.

A setting that changes what the towers compute and that these towers do not have is refused by name.
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
    """A JSON object of a file.

    Raises:
        UserError: for anything else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(found, Mapping):
        raise UserError(f"{path} holds a {type(found).__name__}, not a JSON object.")
    return found


def section(config: Mapping[str, Any], name: str, where: Path) -> Mapping[str, Any]:
    """A part of a config, empty where it is absent or null."""
    found = config.get(name)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise UserError(f"{where}: {name} is a {type(found).__name__}, not an object.")
    return found


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
    """Activations, heads and sizes that a ``config.json`` of a CLIP names; its own defaults where it is silent."""
    kind = config.get("model_type", "clip")
    if kind != "clip":
        raise UserError(f"{where} is of a {kind!r} model; the towers read here are those of model_type 'clip'.")
    facts: Facts = {}
    for side in ("vision", "text"):
        # Published folders of 2022 repeat a section under this name, and there it wins.
        told = {**section(config, f"{side}_config", where), **section(config, f"{side}_config_dict", where)}
        act = told.get("hidden_act", "quick_gelu")
        if act not in _HF_ACTIVATIONS:
            raise UserError(
                f"{where}: {side}_config.hidden_act is {act!r}; towers have {', '.join(sorted(_HF_ACTIVATIONS))}."
            )
        facts["activation" if side == "vision" else "text_activation"] = _HF_ACTIVATIONS[act]
        eps = told.get("layer_norm_eps", 1e-5)
        if not isinstance(eps, float | int) or abs(eps - 1e-5) > 1e-9:
            raise UserError(f"{where}: {side}_config.layer_norm_eps is {eps!r}; these towers have 1e-05.")
        facts.update({ours: told[theirs] for theirs, ours in _HF_SIZES[side].items() if told.get(theirs) is not None})
    return facts


def huggingface_config(config: TowerConfig) -> dict[str, Any]:
    """What ``CLIPModel.from_pretrained`` builds the same towers from."""
    told: dict[str, dict[str, Any]] = {
        side: {theirs: getattr(config, ours) for theirs, ours in _HF_SIZES[side].items()} for side in _HF_SIZES
    }
    common = {"projection_dim": config.embed_dim, "layer_norm_eps": 1e-5, "attention_dropout": 0.0}
    told["vision"].update(
        common,
        model_type="clip_vision_model",
        hidden_act=config.activation,
        intermediate_size=4 * config.vision_width,
        num_channels=3,
    )
    # CLIP's tokenizer puts the ends last in its vocabulary, and the reader looks for the end token by its id.
    told["text"].update(
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
        "text_config": told["text"],
        "vision_config": told["vision"],
    }


def huggingface_preprocessor(config: TowerConfig) -> dict[str, Any]:
    """CLIP's image preparation, as ``AutoImageProcessor`` reads it."""
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

#: Settings that change what a tower computes, with the values under which it is the tower of this package; any other
#: setting must be off.
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
#: Settings of training, of outputs that are not used, and of names of tensors.
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
    """Activation, heads and sizes that an ``open_clip_config.json`` (or a model config of open_clip) names."""
    model = section(config, "model_cfg", where) if "model_cfg" in config else config
    foreign = [k for k, v in model.items() if k not in _OC_MODEL and v]
    facts: Facts = {"activation": "quick_gelu" if model.get("quick_gelu") else "gelu"}
    for side in ("vision", "text"):
        told = section(model, f"{side}_cfg", where)
        sizes, plain = _OC_SIZES[side], _OC_PLAIN[side]
        foreign += [
            f"{side}_cfg.{k}={v!r}"
            for k, v in told.items()
            if k not in sizes and k not in _OC_ANY and v and v not in plain.get(k, ())
        ]
        facts.update({ours: told[theirs] for theirs, ours in sizes.items() if told.get(theirs) is not None})
    if foreign:
        raise UserError(
            f"{where} describes towers that compute otherwise than those of this package: {', '.join(foreign)}."
        )
    image = facts.get("image_size")
    if isinstance(image, list) and len(set(map(str, image))) == 1:
        facts["image_size"] = image[0]
    width, head = facts.get("vision_width"), section(model, "vision_cfg", where).get("head_width", 64)
    if isinstance(width, int) and isinstance(head, int) and head > 0:
        facts["vision_heads"] = width // head
    return facts


def open_clip_config(config: TowerConfig) -> dict[str, Any]:
    """What open_clip builds the same towers from.

    Raises:
        UserError: when the towers have different activations, for which open_clip has one switch.
    """
    if config.text_activation not in ("", config.activation):
        raise UserError(
            f"open_clip has one activation for both towers; these have {config.activation} and "
            f"{config.text_activation}. Write --layout huggingface."
        )
    told: dict[str, dict[str, Any]] = {
        side: {theirs: getattr(config, ours) for theirs, ours in _OC_SIZES[side].items()} for side in _OC_SIZES
    }
    told["vision"]["head_width"] = config.vision_width // config.vision_heads
    mean, std = image_statistics()
    return {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "quick_gelu": config.activation == "quick_gelu",
            "vision_cfg": told["vision"],
            "text_cfg": told["text"],
        },
        "preprocess_cfg": {"mean": list(mean), "std": list(std)},
    }


def other_statistics(config: Mapping[str, Any]) -> str:
    """Image mean and deviation that a config names, where they are not CLIP's; else empty."""
    told = config.get("preprocess_cfg", config)
    if not isinstance(told, Mapping):
        return ""
    for keys in (("mean", "std"), ("image_mean", "image_std")):
        found = [told.get(k) for k in keys]
        if all(isinstance(v, list) and len(v) == 3 and all(isinstance(n, float | int) for n in v) for v in found):
            near = all(
                abs(a - b) < 1e-3
                for v, own in zip(found, image_statistics(), strict=True)
                for a, b in zip(v or [], own, strict=True)
            )
            return "" if near else f"mean {found[0]}, std {found[1]}"
    return ""
