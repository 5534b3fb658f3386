"""Readers and writers of tower checkpoints; the layout is recognised by content.

Read: OpenAI TorchScript archives and state dicts (CLIP, MetaCLIP, CLIPSelf on OpenAI CLIP, DeBias-CLIP),
Long-CLIP, SmartCLIP, open_clip (training checkpoints, folders), Hugging Face CLIP (file or folder, whole or in shards),
and our own files. No code of a file runs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.models.towers import layouts
from smartclip_det.models.towers.config import TowerConfig
from smartclip_det.models.towers.containers import FORMAT, Container, open_container
from smartclip_det.models.towers.low_rank import merge_low_rank

logger = logging.getLogger(__name__)


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
        reading: which weights of the file these are.
    """

    state: dict[str, Tensor]
    config: TowerConfig
    layout: str
    unmatched: list[str] = field(default_factory=list)
    activation_known: bool = True
    hash: str = ""
    reading: str = "top"


def state_hash(state: Mapping[str, Tensor]) -> str:
    """16 hex digits over names, shapes and fp32 values: the same for every layout of the same weights."""
    digest = hashlib.sha256()
    for name in sorted(state):
        # A copy: numpy would pin the storage, and FSDP frees that of its gathered parameters.
        value = state[name].detach().float().cpu().contiguous().clone()
        digest.update(f"{name}{list(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:16]


def read_checkpoint(path: str | Path, *, activation: str | None = None, reading: str | None = None) -> Checkpoint:
    """Read towers from any known file.

    Args:
        path: a ``.pt``, ``.pth``, ``.bin`` or ``.safetensors`` file, or a folder of Hugging Face or open_clip (whole
            or in shards).
        activation: ``quick_gelu`` or ``gelu`` where the file does not carry it; overrides nothing that it does.
        reading: which weights, for files that hold several (``ema`` beside ``state_dict``): a name of the error that
            is raised without it.

    Raises:
        UserError: missing, broken or foreign files, pickled objects, mixed layouts, several readings, tensors that
            are missing, broken, or have no place in the towers.
    """
    path = Path(path)
    opened = open_container(path)
    states = {k: merge_low_rank(v) for k, v in opened.states.items()}
    chosen = _choose(layouts.readings(states, str(path)), reading, str(path))
    state = layouts.to_openai(chosen.state, chosen.layout)
    config, known = _config(state, opened, chosen, activation, str(path))
    expected = expected_shapes(config)
    state = _with_plain_scale(state)
    foreign, others = layouts.without_place(state, expected)
    if foreign:
        raise UserError(
            f"{path} holds {len(foreign)} tensors that these towers have no place for and that change what they "
            f"compute: {_some(foreign)}. They are of another architecture; reading the rest would give wrong vectors."
        )
    _check_tensors(state, expected, f"{path}{opened.notes and f' ({opened.notes.strip()})'}")
    unmatched = sorted(others + chosen.outside)
    if unmatched:
        logger.warning(
            "%s: %d keys belong to no tower and were left out: %s", path, len(unmatched), _some(unmatched, 20)
        )
    if not known:
        logger.warning("%s does not carry its activation; %s is assumed.", path, config.activation)
    state = {k: state[k].float() for k in expected}
    broken = [k for k, v in state.items() if not torch.isfinite(v).all()]
    if broken:
        raise UserError(
            f"{path} holds NaN or infinite values in {len(broken)} of {len(state)} tensors ({_some(broken)})."
        )
    layout = opened.layout or chosen.layout
    return Checkpoint(state, config, layout, unmatched, known, state_hash(state), chosen.name)


def _some(names: Sequence[str], count: int = 5) -> str:
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")


def _choose(found: Sequence[layouts.Reading], asked: str | None, where: str) -> layouts.Reading:
    """The reading that was asked for, or the only one."""
    names = [r.name for r in found]
    if asked is not None:
        hits = [r for r in found if r.name == asked] or [r for r in found if r.name.split(".")[-1] == asked]
        if len(hits) != 1:
            raise UserError(f"{where} has no weights {asked!r} (reading); it holds: {', '.join(names)}.")
        return hits[0]
    first = found[0]
    if any(_differ(first.state, r.state) for r in found[1:]):
        raise UserError(
            f"{where} can be read in {len(found)} ways, with other weights each: {', '.join(names)}. Say which: "
            f"reading={names[-1]!r} (towers.reading in configs, --reading of convert)."
        )
    return first


def _differ(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() != b.keys() or any(v.shape != b[k].shape or not torch.equal(v, b[k]) for k, v in a.items())


def _config(
    state: Mapping[str, Tensor], opened: Container, chosen: layouts.Reading, activation: str | None, where: str
) -> tuple[TowerConfig, bool]:
    """Sizes by the tensors, the rest by what is written beside them; and whether the activation was told."""
    told = layouts.infer_config(state, where)
    facts = dict(opened.facts)
    if opened.own:
        TowerConfig.from_dict({**told.to_dict(), **facts})
        lost = [k for k in ("activation", "vision_heads", "text_heads", "mask_pad") if k not in facts]
        if lost:
            raise UserError(
                f"The header of {where} lacks {', '.join(lost)}, which tensors do not tell. Write it again."
            )
    sizes = told.to_dict()
    wrong = [k for k in layouts.shaped(told) if k in facts and facts[k] != sizes[k]]
    if wrong:
        shown = "; ".join(f"{k} {facts[k]!r}, by the tensors {sizes[k]!r}" for k in wrong)
        raise UserError(f"What is written beside the tensors of {where} does not fit them: {shown}.")
    if chosen.layout == "native" and not facts and told.mask_layers:
        logger.warning("%s does not say how its mask network treats padding; mask_pad='ignore' is assumed.", where)
        facts["mask_pad"] = "ignore"
    known = "activation" in facts
    if activation is not None:
        said = {facts.get("activation", activation), facts.get("text_activation") or activation}
        if said != {activation}:
            raise UserError(
                f"{where} says activation={said.difference({activation}).pop()!r}; {activation!r} was asked for."
            )
    if not known:
        facts["activation"] = activation or ("gelu" if opened.layout == "open_clip" else "quick_gelu")
    return told.with_(**facts), known or activation is not None


def _with_plain_scale(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One number is one number, whatever its axes; without any the start of CLIP, which no score here uses."""
    scale = state.get("logit_scale")
    if scale is None:
        return {**state, "logit_scale": torch.tensor(math.log(1 / 0.07))}
    return {**state, "logit_scale": scale.reshape(())} if scale.numel() == 1 else dict(state)


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
        save_file(named, str(part), metadata={"format": FORMAT, "config": json.dumps(config.to_dict())})
    elif layout == "openai":
        torch.save(named, part)
    else:
        torch.save({"meta": {"tower_config": config.to_dict()}, "state_dict": named}, part)
    os.replace(part, path)
    return path
