"""Export of towers as folders that transformers and open_clip can load."""

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

#: Folder layouts, and the call that loads each.
FOLDERS = {
    "huggingface": "transformers.CLIPModel.from_pretrained('{path}')",
    "open_clip": "open_clip.create_model('local-dir:{path}')",
}


def write_folder(
    state: Mapping[str, Tensor], config: TowerConfig, path: str | Path, *, layout: str, drop_masks: bool = False
) -> Path:
    """Write a folder with weights and config.

    The two position tables of a stretched tower are merged into one; the vectors do not change.

    Args:
        state: tensors under OpenAI names.
        config: tower config.
        path: output folder; created if missing.
        layout: ``huggingface`` or ``open_clip``.
        drop_masks: drop the mask network, which neither layout can store.

    Returns:
        The folder.

    Raises:
        UserError: for towers that the layout cannot represent.
    """
    from safetensors.torch import save_file

    check_choice("layout", layout, FOLDERS)
    if config.mask_layers and not drop_masks:
        raise UserError(
            f"The layout {layout} cannot store a mask network. Write .safetensors, or drop the masks with --drop-masks."
        )
    if config.vision != "vit":
        raise UserError(
            f"The layout {layout} only supports vision transformers; this image tower is {config.vision!r}. "
            "Write .safetensors."
        )
    if config.saliency:
        raise UserError(
            f"The layout {layout} cannot store weights of cells, so its dense maps would differ. Write .safetensors, "
            "or drop them: load_towers(dict(checkpoint=PATH, saliency=False)).save(...)."
        )
    named, config = plain_towers(state, config)
    path = Path(path)
    if path.is_file():
        raise UserError(f"{path} is a file; the layout {layout} needs a folder.")
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
    """The same towers without mask network, with a single position table."""
    named = {k: v for k, v in state.items() if not k.startswith("mask_net.")}
    if config.stretched:
        rest = named.pop("positional_embedding_res")
        named["positional_embedding"] = torch.cat(
            [named["positional_embedding"][:KEPT_POSITIONS], rest[KEPT_POSITIONS:]]
        )
    return named, config.with_(mask_layers=0, mask_pad="ignore", mask_top_k=0, stretched=False)
