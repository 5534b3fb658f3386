"""Where towers come from: a checkpoint file, a name of published weights, or an architecture with random weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

from smartclip_det.core.errors import UserError, check_choice, nearest
from smartclip_det.models.towers.peer_configs import read_json, section
from smartclip_det.models.towers.smartclip import SmartCLIP
from smartclip_det.models.zoo import fetch, is_name, no_such_file

logger = logging.getLogger(__name__)
#: Towers read so far by :func:`read_once`, by source; None outside of it.
_READ: ContextVar[dict[str, SmartCLIP] | None] = ContextVar("towers read once", default=None)
_KEYS = {
    "checkpoint": (
        "checkpoint",
        "activation",
        "reading",
        "stretch",
        "mask_layers",
        "mask_pad",
        "mask_top_k",
        "mask_bias",
        "saliency",
    ),
    "arch": ("arch", "seed", "sizes"),
}


@contextmanager
def read_once() -> Iterator[None]:
    """Within it, towers that were read are given again when the same source is asked for: the same object.

    For a detector whose config names its towers twice, for the backbone and for the texts.
    """
    token = _READ.set({})
    try:
        yield
    finally:
        _READ.reset(token)


def load_towers(source: Mapping[str, Any], **vision_options: Any) -> SmartCLIP:
    """Build towers, or inside of :func:`read_once` give those of the same source again.

    Arguments and errors as in :func:`_load`. A second call's ``vision_options`` are those of the first.
    """
    kept = _READ.get()
    if kept is None:
        return _load(source, vision_options)
    key = json.dumps({k: v for k, v in source.items() if v is not None}, sort_keys=True, default=str)
    if key not in kept:
        kept[key] = _load(source, vision_options)
    return kept[key]


def _load(source: Mapping[str, Any], vision_options: Mapping[str, Any]) -> SmartCLIP:
    """Build towers.

    Args:
        source: ``dict(checkpoint=PATH_OR_NAME, activation=None, reading=None, stretch=False)`` or ``dict(arch=NAME,
            seed=0, sizes=dict(embed_dim=256))``, ``sizes`` being changes to the architecture. A checkpoint of None is
            passed over, so a config can offer both: ``dict(checkpoint=None, arch=NAME)``.
            With ``mask_layers=1`` (and ``mask_pad``, ``mask_top_k``) a checkpoint without a mask network gets one,
            randomly started by the seed: how SmartCLIP starts from CLIP. ``mask_bias`` is added to the logits of a
            mask network that starts at random: above 0 masks start open. ``saliency=True`` gives the cells of a ViT's
            dense map weights that dense terms of alignment learn (all equal at first); ``saliency=False`` leaves out
            those of a checkpoint, so that both poolings can be measured. Without it towers stay as they come.
        vision_options: see :class:`SmartCLIP`.

    Raises:
        UserError: when neither is given, or for unknown keys.
    """
    known = [k for keys in _KEYS.values() for k in keys]
    for key in source:
        if key not in known:
            raise UserError(f"Unknown towers key {key!r}. Nearest: {', '.join(nearest(key, known)) or 'none'}.")
    if source.get("checkpoint"):
        model = SmartCLIP.from_checkpoint(
            tower_file(source["checkpoint"]),
            activation=source.get("activation"),
            reading=source.get("reading"),
            stretch=source.get("stretch", False),
            **vision_options,
        )
        fresh = model.mask_network is None
        return _with_masks_of(_with_parts(model, source, vision_options), source, fresh=fresh)
    if source.get("arch"):
        sizes = dict(source.get("sizes") or {})
        if source.get("saliency") is not None:
            sizes["saliency"] = source["saliency"]
        model = SmartCLIP.from_arch(source["arch"], seed=source.get("seed", 0), sizes=sizes, **vision_options)
        return _with_masks_of(model, source, fresh=True)
    raise UserError("towers need dict(checkpoint=PATH_OR_NAME) or dict(arch=NAME, seed=0).")


def resolve_encoder(given: str | Path) -> dict[str, Any]:
    """What was given for weights, a file or a name, as a source of an encoder whose file is on this machine.

    A file or folder that is there is taken as such, whatever it is called.

    Returns:
        ``dict(checkpoint=PATH)``, with ``open_clip=MODEL`` for families that open_clip builds.

    Raises:
        UserError: for unknown names and missing files, and whatever stops a download.
    """
    text = str(given)
    if Path(text).expanduser().exists():
        return {"checkpoint": str(Path(text).expanduser())}
    if not is_name(text):
        raise no_such_file(text)
    found = fetch(text)
    source: dict[str, Any] = {"checkpoint": str(found.path)}
    if found.weights.kind == "open_clip" or _is_timm(found.path.parent / "open_clip_config.json"):
        if not found.weights.open_clip:
            raise UserError(
                f"{text} is of a timm family, and not in the registry: say whose it is by --open-clip MODEL --weights "
                f"{found.path}."
            )
        source["open_clip"] = found.weights.open_clip_model
    return source


def tower_file(given: str | Path) -> str:
    """The file of towers in OpenAI's layout that a path or name means.

    Raises:
        UserError: as :func:`resolve_encoder`, and for other families.
    """
    source = resolve_encoder(given)
    if "open_clip" in source:
        raise UserError(
            f"{given} is {source['open_clip']} of open_clip, which has no towers in OpenAI's layout: it cannot be "
            "trained or stand in a detector here. probe, rescore and ground take it, and load_encoder in Python."
        )
    return str(source["checkpoint"])


def _is_timm(config: Path) -> bool:
    if not config.is_file():
        return False
    told = section(read_json(config), "model_cfg", config)
    return "timm_model_name" in section(told, "vision_cfg", config)


def _with_masks_of(model: SmartCLIP, source: Mapping[str, Any], *, fresh: bool) -> SmartCLIP:
    """The same towers, their mask network reading padding, choosing dimensions and starting as the source says."""
    if fresh and source.get("mask_bias") and model.mask_network is not None:
        model.mask_network.start_at(float(source["mask_bias"]))
    changes = {k: source[k] for k in ("mask_pad", "mask_top_k") if source.get(k)}
    if changes and model.mask_network is not None:
        told = {k: v for k, v in changes.items() if getattr(model.config, k) != v}
        if told:
            logger.info("Masks as asked for, and not as the towers came: %s.", told)
        model.config = model.config.with_(**changes)
        model.mask_network.mask_pad, model.mask_network.top_k = model.config.mask_pad, model.config.mask_top_k
    return model


def load_encoder(source: Mapping[str, Any], device: str = "cpu") -> Any:
    """Any encoder, in eval mode: what :func:`load_towers` reads, names, or ``dict(open_clip=NAME, checkpoint=PATH)``.

    Args:
        source: with ``open_clip``, the other keys are those of ``OpenClipEncoder``.
        device: where to put it.
    """
    if source.get("checkpoint"):
        found = resolve_encoder(source["checkpoint"])
        asked = source.get("open_clip")
        if asked and found.get("open_clip", asked) != asked:
            raise UserError(f"{source['checkpoint']} are weights of {found['open_clip']}; {asked} was asked for.")
        source = {**source, **found}
    if not source.get("open_clip"):
        return load_towers(source).to(device).eval()
    from smartclip_det.models.towers.open_clip_towers import OpenClipEncoder

    options = {k: v for k, v in source.items() if k != "open_clip"}
    known = ("checkpoint", "image_size", "seed", "tokenizer")
    for key in options:
        check_choice("encoder key", key, known)
    return OpenClipEncoder(source["open_clip"], **options).to(device).eval()


def _with_parts(model: SmartCLIP, source: Mapping[str, Any], vision_options: Mapping[str, Any]) -> SmartCLIP:
    """The same towers with a new mask network or weights of cells, or without the latter, as asked for."""
    changes = {}
    if source.get("mask_layers") and model.mask_network is None:
        changes = {
            "mask_layers": source["mask_layers"],
            "mask_pad": source.get("mask_pad", "ignore"),
            "mask_top_k": source.get("mask_top_k", 0),
        }
    if source.get("saliency") is not None:
        changes["saliency"] = source["saliency"]
    config = model.config.with_(**changes)
    if config == model.config:
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(source.get("seed", 0))
        out = SmartCLIP(config, **vision_options).eval()
    out.load_state_dict(model.state_dict(), strict=False)
    return out
