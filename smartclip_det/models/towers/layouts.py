"""Tensor names in published checkpoint layouts, and sizes inferred from shapes.

This package uses the OpenAI layout internally: ``visual.*`` image tower, bare names text tower, ``mask_net.*`` mask
network.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from smartclip_det.core.errors import UserError
from smartclip_det.models.towers.config import TowerConfig
from smartclip_det.models.towers.local_tower import STRIDE

State = dict[str, Tensor]

#: Keys that identify a layout, after any prefix.
ANCHORS = {
    "openai": ("visual.conv1.weight", "visual.saliency.weight"),
    "huggingface": ("vision_model.embeddings.patch_embedding.weight",),
    "native": ("image_tower.conv1.weight", "image_tower.saliency.weight"),
}
#: A tensor that only the local tower has, and those that show its sizes.
_LOCAL = "visual.saliency.weight"
_LOCAL_SIZES = (_LOCAL, "visual.value.weight", "visual.stem.0.conv.weight")
#: Buffers and sizes that some writers add; redundant with the shapes.
IGNORABLE = re.compile(
    r"^((visual|text)\.)?(input_resolution|image_size|context_length|vocab_size|attn_mask)$"
    r"|^(vision|text)_model\.embeddings\.position_ids$"
)
#: Tensor names of towers; an unknown tensor among them changes what the towers compute.
_OF_TOWERS = re.compile(
    r"^(visual|transformer|text|token_embedding|positional_embedding\w*|ln_final|text_projection|mask_net"
    r"|vision_model|text_model|visual_projection|image_tower|text_tower|mask_network)(\.|$)"
)
_TEXT = re.compile(r"^(transformer|token_embedding|positional_embedding\w*|ln_final|text_projection)(\.|$)")
_NATIVE = (("visual.", "image_tower."), ("mask_net.", "mask_network."), ("logit_scale", "logit_scale"))


def to_native(openai_name: str) -> str:
    """Parameter name in :class:`SmartCLIP` for an OpenAI name."""
    for old, new in _NATIVE:
        if openai_name.startswith(old):
            return new + openai_name[len(old) :]
    return f"text_tower.{openai_name}"


def from_native(name: str) -> str:
    """OpenAI name for a parameter in :class:`SmartCLIP`."""
    for old, new in _NATIVE:
        if name.startswith(new):
            return old + name[len(new) :]
    return name.removeprefix("text_tower.")


@dataclass(frozen=True)
class Reading:
    """One way to read a file.

    Attributes:
        name: name to select it by.
        layout: layout of the names.
        state: tensors under their names in that layout.
        outside: names of tensors outside the towers.
    """

    name: str
    layout: str
    state: State
    outside: list[str]


def readings(states: Mapping[str, State], where: str) -> list[Reading]:
    """All ways to read state dicts as towers, recognised by content.

    Raises:
        UserError: for no known layout, several with one prefix, or an unsupported architecture.
    """
    candidates = [r for name, state in states.items() for r in _readings_of(state, name, where)]
    if not candidates:
        raise _unsupported([k for state in states.values() for k in state], where)
    return candidates


def _readings_of(state: State, name: str, where: str) -> list[Reading]:
    layouts: dict[str, str] = {}
    for layout, anchor in ((name, a) for name, anchors in ANCHORS.items() for a in anchors):
        for key in state:
            if key == anchor or key.endswith(f".{anchor}"):
                prefix = key[: -len(anchor)]
                if prefix in layouts:
                    both = ", ".join(sorted((layout, layouts[prefix])))
                    raise UserError(f"{where} mixes the layouts {both}; it is not a single checkpoint.")
                layouts[prefix] = layout
    if not layouts and "conv1.weight" in state and "class_embedding" in state:
        # An image tower alone; next to full towers it is another reading.
        return [Reading(name or "visual", "openai", {f"visual.{k}": v for k, v in state.items()}, [])]
    out = []
    for prefix, layout in layouts.items():
        words = [w for w in (name, prefix.rstrip(".") if len(layouts) > 1 else "") if w]
        inner = tuple(p for p in layouts if p != prefix and p.startswith(prefix))
        own = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix) and not k.startswith(inner)}
        out.append(Reading(".".join(words) or "top", layout, own, [k for k in state if not k.startswith(prefix)]))
    return out


def _unsupported(keys: list[str], where: str) -> UserError:
    if any("visual.attnpool." in k or "visual.layer1." in k for k in keys):
        return UserError(f"{where} is a ResNet CLIP; only ViT towers in the OpenAI layout are supported.")
    if any("visual.trunk." in k for k in keys):
        return UserError(
            f"{where} is an open_clip model with a timm tower; only ViT towers in the OpenAI layout are supported."
        )
    if any(k.endswith(("tower.conv1.weight", "tower.saliency.weight")) for k in keys):
        return UserError(
            f"{where} is a detector checkpoint (image tower only). Use the CLIP checkpoint that it was trained from."
        )
    shown = ", ".join(keys[:5]) or "no tensors"
    return UserError(f"{where} matches no known CLIP layout (0 keys matched). It contains: {shown}...")


def to_openai(state: State, layout: str) -> State:
    """Rename (and for Hugging Face re-pack) tensors into the OpenAI layout; unknown names are kept."""
    state = {k: v for k, v in state.items() if not IGNORABLE.match(k)}
    if layout == "native":
        return {
            from_native(k) if not k.startswith("text_tower.") or _TEXT.match(k[11:]) else k: v for k, v in state.items()
        }
    if layout == "huggingface":
        return _from_huggingface(state)
    return {k[5:] if k.startswith("text.") and _TEXT.match(k[5:]) else k: v for k, v in state.items()}


def without_place(state: Mapping[str, Tensor], expected: Iterable[str]) -> tuple[list[str], list[str]]:
    """Tensors that the towers do not have: those of towers, and others (heads, queues)."""
    known = set(expected)
    strange = sorted(k for k in state if k not in known)
    return [k for k in strange if _OF_TOWERS.match(k)], [k for k in strange if not _OF_TOWERS.match(k)]


_HF_TOP = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.",
}
_HF_BLOCK = {
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "self_attn.out_proj.": "attn.out_proj.",
}
_HF_LAYER = re.compile(r"^(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)$")


def _from_huggingface(state: State) -> State:
    out: State = {}
    packed: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key in ("visual_projection.weight", "text_projection.weight"):
            out["visual.proj" if key.startswith("visual") else "text_projection"] = value.t().contiguous()
            continue
        layer = _HF_LAYER.match(key)
        if layer:
            tower, index, rest = layer.groups()
            base = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{index}."
            part = re.match(r"self_attn\.([qkv])_proj\.(weight|bias)$", rest)
            if part:
                packed.setdefault(f"{base}attn.in_proj_{part[2]}", {})[part[1]] = value
                continue
            name = next((base + new + rest[len(old) :] for old, new in _HF_BLOCK.items() if rest.startswith(old)), key)
        else:
            name = next((new + key[len(old) :] for old, new in _HF_TOP.items() if key.startswith(old)), key)
        out[name] = value
    for name, parts in packed.items():
        if set(parts) != set("qkv"):
            raise UserError(f"The Hugging Face layer of {name} lacks {', '.join(sorted(set('qkv') - set(parts)))}.")
        out[name] = torch.cat([parts["q"], parts["k"], parts["v"]])
    return out


def to_huggingface(state: Mapping[str, Tensor]) -> State:
    """Inverse of the Hugging Face reader, for tests and converters (no mask network, 77 positions)."""
    out: State = {}
    block = {new: old for old, new in _HF_BLOCK.items()}
    top = {new: old for old, new in _HF_TOP.items()}
    for key, value in state.items():
        match = re.match(r"^(visual\.)?transformer\.resblocks\.(\d+)\.(.+)$", key)
        if key in ("visual.proj", "text_projection"):
            name = "visual_projection" if key.startswith("visual") else "text_projection"
            out[f"{name}.weight"] = value.t().contiguous()
        elif match:
            base = f"{'vision' if match[1] else 'text'}_model.encoder.layers.{match[2]}."
            if ".in_proj_" in key:
                kind = key.rsplit("_", 1)[1]
                for letter, part in zip("qkv", value.chunk(3), strict=True):
                    out[f"{base}self_attn.{letter}_proj.{kind}"] = part.contiguous()
            else:
                new = next(n for n in block if match[3].startswith(n))
                out[base + block[new] + match[3][len(new) :]] = value
        else:
            matches = [n for n in top if key.startswith(n)]
            out[top[matches[0]] + key[len(matches[0]) :] if matches else key] = value
    return out


def infer_config(state: Mapping[str, Tensor], where: str) -> TowerConfig:
    """Infer sizes from the shapes of a state dict in the OpenAI layout; other settings keep their defaults.

    Raises:
        UserError: if tensors that determine sizes are missing (a partial file).
    """
    image = _LOCAL_SIZES if _LOCAL in state else ("visual.conv1.weight", "visual.positional_embedding", "visual.proj")
    needed = (*image, "text_projection", "token_embedding.weight", "positional_embedding", "ln_final.weight")
    missing = [n for n in needed if n not in state]
    axes = {"visual.conv1.weight": 4, "ln_final.weight": 1, **dict.fromkeys(_LOCAL_SIZES, 4)}
    flat = [n for n in needed if n in state and state[n].dim() != axes.get(n, 2)]
    if flat:
        raise UserError(f"{where}: {flat[0]} has {state[flat[0]].dim()} axes; it is not a CLIP checkpoint.")
    if missing:
        raise UserError(f"{where} is not a complete CLIP checkpoint: it lacks {', '.join(missing)}.")
    text_width = state["ln_final.weight"].shape[0]
    masks = _count(state, r"^mask_net\.resblocks\.(\d+)\.")
    return TowerConfig(
        **(_local_sizes(state) if _LOCAL in state else _vit_sizes(state)),
        embed_dim=state["text_projection"].shape[1],
        context_length=state["positional_embedding"].shape[0],
        vocab_size=state["token_embedding.weight"].shape[0],
        text_width=text_width,
        text_layers=_count(state, r"^transformer\.resblocks\.(\d+)\."),
        text_heads=_heads(text_width),
        stretched="positional_embedding_res" in state,
        mask_layers=masks,
        # Files without our metadata are released ones, whose mask network attends to padding.
        mask_pad="include" if masks else "ignore",
    )


def _vit_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    width, _, patch, _ = state["visual.conv1.weight"].shape
    grid = math.isqrt(state["visual.positional_embedding"].shape[0] - 1)
    return {
        "image_size": grid * patch,
        "patch_size": patch,
        "vision_width": width,
        "vision_layers": _count(state, r"^visual\.transformer\.resblocks\.(\d+)\."),
        "vision_heads": _VISION_HEADS.get(width) or _heads(width),
        "saliency": "visual.saliency" in state,
    }


def _local_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes of the convolutional tower, which takes any input size; the tensors do not show its native one."""
    return {
        "vision": "local",
        "image_size": 64,
        "patch_size": STRIDE,
        "vision_heads": 1,
        "vision_width": state["visual.value.weight"].shape[1],
        "vision_layers": _count(state, r"^visual\.blocks\.(\d+)\."),
    }


#: Keys of ``TowerConfig`` that shapes determine.
SHAPED = (
    "vision",
    "embed_dim",
    "image_size",
    "patch_size",
    "vision_width",
    "vision_layers",
    "context_length",
    "vocab_size",
    "text_width",
    "text_layers",
    "stretched",
    "mask_layers",
    "saliency",
)


def shaped(config: TowerConfig) -> tuple[str, ...]:
    """Keys that the shapes of towers with this config determine."""
    return tuple(k for k in SHAPED if k != "image_size" or config.vision != "local")


#: Heads of towers whose heads are not 64 wide: ViT-H/14, ViT-g/14, ViT-bigG/14 (text width 1280 has 20 heads of 64).
_VISION_HEADS = {1280: 16, 1408: 16, 1664: 16}


def _heads(width: int) -> int:
    return max(1, width // 64)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({m[1] for m in (re.match(pattern, k) for k in state) if m})
