"""Towers as folders that Hugging Face's and open_clip's own loaders read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.grid import KEPT_POSITIONS
from smartclip_det.models.towers import layouts, peer_configs
from smartclip_det.models.towers.config import TowerConfig
from smartclip_det.utils.files import write_whole

#: Layouts that are folders, and the command that each is read by.
FOLDERS = {
    "huggingface": "transformers.CLIPModel.from_pretrained('{path}')",
    "open_clip": "open_clip.create_model('local-dir:{path}')",
}


def write_folder(
    state: Mapping[str, Tensor], config: TowerConfig, path: str | Path, *, layout: str, drop_masks: bool = False
) -> Path:
    """Write a folder of weights and config.

    The two position tables of a stretched tower become the one table that is in force; vectors stay the same.

    Args:
        state: tensors under OpenAI names.
        config: sizes and facts.
        path: a folder, made where it is not there.
        layout: ``huggingface`` or ``open_clip``.
        drop_masks: leave the mask network out, for which neither has a place.

    Returns:
        The folder.

    Raises:
        UserError: for towers that the layout cannot carry.
    """
    from safetensors.torch import save_file

    check_choice("layout", layout, FOLDERS)
    if config.mask_layers and not drop_masks:
        raise UserError(
            f"The layout {layout} has no place for a mask network. Write .safetensors, or leave the masks out on "
            "purpose (--drop-masks)."
        )
    if config.vision != "vit":
        raise UserError(
            f"The layout {layout} has vision transformers only, and the image tower of these is {config.vision!r}. "
            "Write .safetensors."
        )
    if config.saliency:
        raise UserError(
            f"The layout {layout} has no place for weights of cells, and its dense maps would be others. Write "
            ".safetensors, or leave them out on purpose: load_towers(dict(checkpoint=PATH, saliency=False)).save(...)."
        )
    named, config = plain_towers(state, config)
    path = Path(path)
    if path.is_file():
        raise UserError(f"{path} is a file; the layout {layout} is a folder.")
    files: dict[str, Any]
    if layout == "huggingface":
        named, weights = layouts.to_huggingface(named), "model.safetensors"
        files = {
            "config.json": peer_configs.huggingface_config(config),
            "preprocessor_config.json": peer_configs.huggingface_preprocessor(config),
        }
    else:
        weights, files = "open_clip_model.safetensors", {"open_clip_config.json": peer_configs.open_clip_config(config)}
    path.mkdir(parents=True, exist_ok=True)
    part = path / f"{weights}.part"
    save_file({k: v.detach().cpu().contiguous() for k, v in named.items()}, str(part), metadata={"format": "pt"})
    part.replace(path / weights)
    for name, content in files.items():
        write_whole(path / name, json.dumps(content, indent=2) + "\n")
    return path


def plain_towers(state: Mapping[str, Tensor], config: TowerConfig) -> tuple[dict[str, Tensor], TowerConfig]:
    """The same towers without mask network and second position table."""
    named = {k: v for k, v in state.items() if not k.startswith("mask_net.")}
    if config.stretched:
        rest = named.pop("positional_embedding_res")
        named["positional_embedding"] = torch.cat(
            [named["positional_embedding"][:KEPT_POSITIONS], rest[KEPT_POSITIONS:]]
        )
    return named, config.with_(mask_layers=0, mask_pad="ignore", mask_top_k=0, stretched=False)
