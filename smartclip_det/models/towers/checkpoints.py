"""Reading and writing tower checkpoints; the layout is recognised by content.

Readable: OpenAI TorchScript archives and state dicts (CLIP, MetaCLIP, CLIPSelf on OpenAI CLIP, DeBias-CLIP), Long-CLIP,
SmartCLIP, open_clip (training checkpoints, folders), Hugging Face CLIP (file or folder, sharded or not), and our own
files. No code in a file is run.
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
        config: sizes, and settings that tensors do not show.
        layout: recognised layout of the file.
        unmatched: keys of the file that match no tower tensor.
        activation_known: False if the activation was assumed.
        hash: the first 16 hex digits of :func:`state_hash`.
        reading: which of the file's weights these are.
    """

    state: dict[str, Tensor]
    config: TowerConfig
    layout: str
    unmatched: list[str] = field(default_factory=list)
    activation_known: bool = True
    hash: str = ""
    reading: str = "top"


def state_hash(state: Mapping[str, Tensor]) -> str:
    """16 hex digits over names, shapes and fp32 values; equal for all layouts of the same weights."""
    digest = hashlib.sha256()
    for name in sorted(state):
        # Clone: numpy would keep the storage alive, and FSDP frees that of gathered parameters.
        value = state[name].detach().float().cpu().contiguous().clone()
        digest.update(f"{name}{list(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:16]


def read_checkpoint(path: str | Path, *, activation: str | None = None, reading: str | None = None) -> Checkpoint:
    """Read towers from any supported file.

    Args:
        path: a ``.pt``, ``.pth``, ``.bin`` or ``.safetensors`` file, or a Hugging Face or open_clip folder (sharded or
            not).
        activation: ``quick_gelu`` or ``gelu``, if the file does not store it; it cannot override the file.
        reading: which weights to read if the file has several (``ema`` next to ``state_dict``); the error without it
            lists the names.

    Raises:
        UserError: for missing, broken or unsupported files, pickled objects, mixed layouts, ambiguous readings, or
            tensors that are missing, not finite or unknown.
    """
    path = Path(path)
    opened = open_container(path)
    states = {k: merge_low_rank(v) for k, v in opened.states.items()}
    chosen = _choose(layouts.readings(states, str(path)), reading, str(path))
    state = layouts.to_openai(chosen.state, chosen.layout)
    config, known = _config(state, opened, chosen, activation, str(path))
    expected = expected_shapes(config)
    state = _with_plain_scale(state)
    unsupported, others = layouts.without_place(state, expected)
    if unsupported:
        raise UserError(
            f"{path} has {len(unsupported)} tensors that these towers do not have and that change what they compute: "
            f"{_some(unsupported)}. It is another architecture; ignoring them would give wrong vectors."
        )
    _check_tensors(state, expected, f"{path}{opened.notes and f' ({opened.notes.strip()})'}")
    unmatched = sorted(others + chosen.outside)
    if unmatched:
        logger.warning("%s: ignored %d keys that belong to no tower: %s", path, len(unmatched), _some(unmatched, 20))
    if not known:
        logger.warning("%s does not store its activation; assuming %s.", path, config.activation)
    state = {k: state[k].float() for k in expected}
    broken = [k for k, v in state.items() if not torch.isfinite(v).all()]
    if broken:
        raise UserError(
            f"{path} has NaN or infinite values in {len(broken)} of {len(state)} tensors ({_some(broken)})."
        )
    layout = opened.layout or chosen.layout
    return Checkpoint(state, config, layout, unmatched, known, state_hash(state), chosen.name)


def _some(names: Sequence[str], count: int = 5) -> str:
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")


def _choose(candidates: Sequence[layouts.Reading], requested: str | None, where: str) -> layouts.Reading:
    """The requested reading, or the only one."""
    names = [r.name for r in candidates]
    if requested is not None:
        matches = [r for r in candidates if r.name == requested]
        matches = matches or [r for r in candidates if r.name.split(".")[-1] == requested]
        if len(matches) != 1:
            raise UserError(f"{where} has no weights {requested!r} (reading); available: {', '.join(names)}.")
        return matches[0]
    first = candidates[0]
    if any(_differ(first.state, r.state) for r in candidates[1:]):
        raise UserError(
            f"{where} has {len(candidates)} different sets of weights: {', '.join(names)}. Choose one with "
            f"reading={names[-1]!r} (towers.reading in configs, --reading of convert)."
        )
    return first


def _differ(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() != b.keys() or any(v.shape != b[k].shape or not torch.equal(v, b[k]) for k, v in a.items())


def _config(
    state: Mapping[str, Tensor], opened: Container, chosen: layouts.Reading, activation: str | None, where: str
) -> tuple[TowerConfig, bool]:
    """Sizes from the tensors and the rest from stored facts, and whether the activation is known."""
    inferred = layouts.infer_config(state, where)
    facts = dict(opened.facts)
    if opened.own:
        TowerConfig.from_dict({**inferred.to_dict(), **facts})
        lost = [k for k in ("activation", "vision_heads", "text_heads", "mask_pad") if k not in facts]
        if lost:
            raise UserError(
                f"The header of {where} lacks {', '.join(lost)}, which tensors do not show. Write the file again."
            )
    sizes = inferred.to_dict()
    wrong = [k for k in layouts.shaped(inferred) if k in facts and facts[k] != sizes[k]]
    if wrong:
        shown = "; ".join(f"{k}={facts[k]!r}, but the tensors have {sizes[k]!r}" for k in wrong)
        raise UserError(f"The config of {where} does not match its tensors: {shown}.")
    if chosen.layout == "native" and not facts and inferred.mask_layers:
        logger.warning("%s does not store how its mask network treats padding; assuming mask_pad='ignore'.", where)
        facts["mask_pad"] = "ignore"
    known = "activation" in facts
    if activation is not None:
        stored = {facts.get("activation", activation), facts.get("text_activation") or activation}
        if stored != {activation}:
            raise UserError(
                f"{where} has activation={stored.difference({activation}).pop()!r}; {activation!r} cannot override it."
            )
    if not known:
        facts["activation"] = activation or ("gelu" if opened.layout == "open_clip" else "quick_gelu")
    return inferred.with_(**facts), known or activation is not None


def _with_plain_scale(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reshape ``logit_scale`` to a scalar; if it is missing, use CLIP's initial value.

    It sets the default temperature of training-free scores; trained heads and benchmarks have their own.
    """
    scale = state.get("logit_scale")
    if scale is None:
        return {**state, "logit_scale": torch.tensor(math.log(1 / 0.07))}
    return {**state, "logit_scale": scale.reshape(())} if scale.numel() == 1 else dict(state)


def expected_shapes(config: TowerConfig) -> dict[str, tuple[int, ...]]:
    """OpenAI names and shapes of all tensors of a tower pair; 302 for CLIP ViT-B/16, 317 for SmartCLIP."""
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
            f"{where}: {len(wrong)} tensors have unexpected shapes; {first} is "
            f"{list(state[first].shape)}, expected {list(expected[first])}."
        )


def _refuse_losses(state: Mapping[str, Tensor], config: TowerConfig, path: Path) -> None:
    """Reject settings that a bare state dict cannot store and a reader would get wrong."""
    inferred = layouts.infer_config(state, str(path)).to_dict()
    wrong = [k for k, v in config.to_dict().items() if inferred[k] != v and k != "activation"]
    if wrong:
        lost = ", ".join(f"{k}={getattr(config, k)!r}" for k in wrong)
        raise UserError(
            f"{path}: a bare .pt file cannot store {lost}, and would be read as another model. Write .safetensors, or "
            "use layout='native'."
        )


def write_checkpoint(
    state: Mapping[str, Tensor], config: TowerConfig, path: str | Path, *, layout: str = "openai"
) -> Path:
    """Write towers atomically.

    Args:
        state: tensors under OpenAI names.
        config: stored as metadata (activation, heads, mask_pad), except in bare ``.pt`` files of the OpenAI layout,
            which cannot store it.
        path: ``.safetensors``, or ``.pt`` / ``.pth``.
        layout: ``openai`` (the released layout of CLIP, Long-CLIP and SmartCLIP) or ``native``.

    Returns:
        ``path``.
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
