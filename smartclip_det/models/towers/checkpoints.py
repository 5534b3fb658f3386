"""Readers and writers of tower checkpoints; the layout is recognised by content.

Read: OpenAI TorchScript archives and state dicts (CLIP, MetaCLIP, CLIPSelf on OpenAI CLIP, DeBias-CLIP),
Long-CLIP, SmartCLIP, open_clip training checkpoints, Hugging Face CLIP (file or folder), and our own files.
No pickled code runs and no archive is called.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.models.towers import layouts
from smartclip_det.models.towers.config import TowerConfig
from smartclip_det.models.towers.low_rank import merge_low_rank
from smartclip_det.utils.safe_load import is_torchscript, safe_safetensors_load, safe_torch_load

logger = logging.getLogger(__name__)
_FORMAT = "smartclip_det.towers/1"


@dataclass
class Checkpoint:
    """Towers read from a file.

    Attributes:
        state: tensors under OpenAI names, fp32.
        config: sizes and the facts that tensors do not tell.
        layout: what the file was recognised as.
        unmatched: keys of the file that belong to no tower tensor.
        activation_known: False when the activation was assumed.
        hash: the first 16 hex digits of :func:`state_hash`.
    """

    state: dict[str, Tensor]
    config: TowerConfig
    layout: str
    unmatched: list[str] = field(default_factory=list)
    activation_known: bool = True
    hash: str = ""


def state_hash(state: Mapping[str, Tensor]) -> str:
    """16 hex digits over names, shapes and fp32 values: the same for every layout of the same weights."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().float().cpu().contiguous()
        digest.update(f"{name}{list(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:16]


def read_checkpoint(path: str | Path, *, activation: str | None = None) -> Checkpoint:
    """Read towers from any known file.

    Args:
        path: a ``.pt``, ``.pth``, ``.bin`` or ``.safetensors`` file, or a Hugging Face folder.
        activation: ``quick_gelu`` or ``gelu`` where the file does not carry it; overrides nothing that it does.

    Raises:
        UserError: missing, broken or foreign files, pickled objects, mixed layouts, missing tensors.
    """
    path = Path(path)
    raw, facts, layout = _open(path)
    raw = merge_low_rank(_strip_module(raw))
    found, prefix = layouts.detect(raw, str(path))
    inside = {k[len(prefix) :]: v for k, v in raw.items() if k.startswith(prefix)}
    state = layouts.to_openai({k: v for k, v in inside.items() if not layouts.IGNORABLE.match(k)}, found)
    outside = [k for k in raw if not k.startswith(prefix)]
    config = layouts.infer_config(state, str(path))
    known = "activation" in facts
    if activation is not None and known and facts["activation"] != activation:
        raise UserError(f"{path} says activation={facts['activation']!r}; {activation!r} was asked for.")
    if found == "native" and not facts and config.mask_layers:
        logger.warning("%s does not say how its mask network treats padding; mask_pad='ignore' is assumed.", path)
        facts["mask_pad"] = "ignore"
    facts = {k: v for k, v in facts.items() if k in config.to_dict()}
    if not known:
        facts["activation"] = activation or ("gelu" if layout == "open_clip" else "quick_gelu")
    config = config.with_(**facts)
    expected = expected_shapes(config)
    _check_tensors(state, expected, str(path))
    unmatched = sorted([k for k in state if k not in expected] + outside)
    if unmatched:
        shown = ", ".join(unmatched[:20]) + (f" and {len(unmatched) - 20} more" if len(unmatched) > 20 else "")
        logger.warning("%s: %d keys belong to no tower and were left out: %s", path, len(unmatched), shown)
    if not known and activation is None:
        logger.warning("%s does not carry its activation; %s is assumed.", path, config.activation)
    state = {k: state[k].float() for k in expected}
    broken = [k for k, v in state.items() if not torch.isfinite(v).all()]
    if broken:
        shown = ", ".join(broken[:5]) + (f" and {len(broken) - 5} more" if len(broken) > 5 else "")
        raise UserError(f"{path} holds NaN or infinite values in {len(broken)} of {len(state)} tensors ({shown}).")
    return Checkpoint(state, config, layout or found, unmatched, known or activation is not None, state_hash(state))


def _open(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Tensors, facts that tensors do not tell, and the container's own layout name."""
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise UserError(f"No checkpoint at {path}. Check the path; weights are never downloaded.")
    if path.suffix == ".safetensors":
        tensors, header = safe_safetensors_load(path)
        if header.get("format") == _FORMAT:
            return tensors, json.loads(header["config"]), "native"
        return tensors, {}, ""
    if is_torchscript(path):
        try:
            archive = torch.jit.load(str(path), map_location="cpu")
        except RuntimeError as error:
            raise UserError(f"{path} is a broken TorchScript archive; it may be cut short.") from error
        return dict(archive.state_dict()), {"activation": "quick_gelu"}, "openai_jit"
    content = safe_torch_load(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dict.")
    facts: dict[str, Any] = {}
    layout = ""
    meta = content.get("meta")
    if isinstance(meta, Mapping) and isinstance(meta.get("tower_config"), Mapping):
        facts = dict(meta["tower_config"])
        layout = "native"
    elif isinstance(content.get("state_dict"), Mapping) and "epoch" in content and "name" in content:
        layout = "open_clip"
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no tensors under any known key ({', '.join(map(str, list(content)[:8]))}).")
    return tensors, facts, layout


def _open_folder(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    config_file = path / "config.json"
    weights = next((path / n for n in ("model.safetensors", "pytorch_model.bin") if (path / n).is_file()), None)
    if weights is None or not config_file.is_file():
        raise UserError(f"{path} is a folder without config.json and model.safetensors or pytorch_model.bin.")
    tensors, _, _ = _open(weights)
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{config_file} is not valid JSON ({error}).") from error
    vision, text = config.get("vision_config", {}), config.get("text_config", {})
    facts = {"activation": vision.get("hidden_act", "quick_gelu")}
    if "num_attention_heads" in vision:
        facts["vision_heads"] = vision["num_attention_heads"]
    if "num_attention_heads" in text:
        facts["text_heads"] = text["num_attention_heads"]
    return tensors, facts, "huggingface"


def _strip_module(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if state and all(k.startswith("module.") for k in state):
        return {k.removeprefix("module."): v for k, v in state.items()}
    return dict(state)


def expected_shapes(config: TowerConfig) -> dict[str, tuple[int, ...]]:
    """OpenAI names and shapes of every tensor of a tower pair; 302 for CLIP ViT-B/16, 317 for SmartCLIP."""
    from smartclip_det.models.towers.smartclip import SmartCLIP

    with torch.device("meta"):
        model = SmartCLIP(config)
    return {layouts.from_native(k): tuple(v.shape) for k, v in model.state_dict().items()}


def _check_tensors(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    missing = [k for k in expected if k not in state]
    if missing:
        shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        raise UserError(f"{where} lacks {len(missing)} of {len(expected)} tensors: {shown}.")
    wrong = [k for k in expected if tuple(state[k].shape) != expected[k]]
    if wrong:
        first = wrong[0]
        raise UserError(
            f"{where}: {len(wrong)} tensors have other shapes than the rest of the file implies; {first} is "
            f"{list(state[first].shape)}, expected {list(expected[first])}."
        )


def _refuse_losses(state: Mapping[str, Tensor], config: TowerConfig, path: Path) -> None:
    """A bare state dict has no place for facts: refuse those that a reader would get wrong."""
    told = layouts.infer_config(state, str(path)).to_dict()
    wrong = [k for k, v in config.to_dict().items() if told[k] != v and k != "activation"]
    if wrong:
        lost = ", ".join(f"{k}={getattr(config, k)!r}" for k in wrong)
        raise UserError(
            f"{path}: a bare .pt file cannot carry {lost}, and would be read as another model. Write .safetensors, or "
            "layout='native'."
        )


def write_checkpoint(
    state: Mapping[str, Tensor], config: TowerConfig, path: str | Path, *, layout: str = "openai"
) -> Path:
    """Write towers; the file appears whole or not at all.

    Args:
        state: tensors under OpenAI names.
        config: written as metadata (activation, heads, mask_pad), except into bare ``.pt`` OpenAI files,
            which have no place for it.
        path: ``.safetensors``, or ``.pt`` / ``.pth``.
        layout: ``openai`` (the released layout of CLIP, Long-CLIP and SmartCLIP) or ``native``.

    Returns:
        The path written.
    """
    from safetensors.torch import save_file

    check_choice("layout", layout, ("openai", "native"))
    path = Path(path)
    if path.suffix != ".safetensors" and layout == "openai":
        _refuse_losses(state, config, path)
    named = {k if layout == "openai" else layouts.to_native(k): v.detach().cpu().contiguous() for k, v in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    if path.suffix == ".safetensors":
        save_file(named, str(part), metadata={"format": _FORMAT, "config": json.dumps(config.to_dict())})
    elif layout == "openai":
        torch.save(named, part)
    else:
        torch.save({"meta": {"tower_config": config.to_dict()}, "state_dict": named}, part)
    os.replace(part, path)
    return path
