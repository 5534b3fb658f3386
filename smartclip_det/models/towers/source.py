"""Sources of towers: a checkpoint file, named weights, or an architecture with random weights."""

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
from smartclip_det.models.zoo import fetch, find

logger = logging.getLogger(__name__)
#: Towers already loaded within :func:`read_once`, by source; None outside it.
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
    """Within this context, loading the same source again returns the same towers object.

    For detectors whose config names its towers twice, for the backbone and for the texts.
    """
    token = _READ.set({})
    try:
        yield
    finally:
        _READ.reset(token)


def load_towers(source: Mapping[str, Any], **vision_options: Any) -> SmartCLIP:
    """Build towers, or within :func:`read_once` return those loaded from the same source.

    Arguments and errors as in :func:`_load`. A cached result keeps the ``vision_options`` of the first call.
    """
    cache = _READ.get()
    if cache is None:
        return _load(source, vision_options)
    key = json.dumps({k: v for k, v in source.items() if v is not None}, sort_keys=True, default=str)
    if key not in cache:
        cache[key] = _load(source, vision_options)
    return cache[key]


def _load(source: Mapping[str, Any], vision_options: Mapping[str, Any]) -> SmartCLIP:
    """Build towers.

    Args:
        source: ``dict(checkpoint=PATH_OR_NAME, activation=None, reading=None, stretch=False)`` or ``dict(arch=NAME,
            seed=0, sizes=dict(embed_dim=256))``, where ``sizes`` overrides the architecture. A checkpoint of None is
            skipped, so a config can offer both: ``dict(checkpoint=None, arch=NAME)``.
            ``mask_layers=1`` (with ``mask_pad``, ``mask_top_k``) adds a mask network with seeded random weights to a
            checkpoint without one, as SmartCLIP training does with CLIP. ``mask_bias`` is added to the logits of a
            newly initialised mask network: above 0, masks start open. ``saliency=True`` adds trainable weights for the
            cells of a ViT's dense map (equal at first), which dense losses of alignment train; ``saliency=False``
            removes those of a checkpoint, to compare both poolings. By default the checkpoint is not changed.
        vision_options: see :class:`SmartCLIP`.

    Raises:
        UserError: if neither is given, or for unknown keys.
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


def check_encoder_name(given: str | Path) -> None:
    """Check that a file exists or a name is known, without loading or downloading anything.

    Raises:
        UserError: for unknown names, with the closest ones, and missing files.
    """
    if not Path(given).expanduser().exists():
        find(str(given))


def resolve_encoder(given: str | Path) -> dict[str, Any]:
    """Resolve a file or name of weights to an encoder source whose file is local.

    An existing file or folder takes precedence over a name.

    Returns:
        ``dict(checkpoint=PATH)``, with ``open_clip=MODEL`` for families that open_clip builds.

    Raises:
        UserError: for unknown names, missing files, or a failed download.
    """
    text = str(given)
    if Path(text).expanduser().exists():
        return {"checkpoint": str(Path(text).expanduser())}
    fetched = fetch(text)
    source: dict[str, Any] = {"checkpoint": str(fetched.path)}
    if fetched.weights.kind == "open_clip" or _is_timm(fetched.path.parent / "open_clip_config.json"):
        if not fetched.weights.open_clip:
            raise UserError(
                f"{text} is a timm model that is not in the registry: name its open_clip model with --open-clip MODEL "
                f"--weights {fetched.path}."
            )
        source["open_clip"] = fetched.weights.open_clip_model
    return source


def tower_file(given: str | Path) -> str:
    """Resolve a path or name to a towers file in the OpenAI layout.

    Raises:
        UserError: as :func:`resolve_encoder`, and for other families.
    """
    source = resolve_encoder(given)
    if "open_clip" in source:
        raise UserError(
            f"{given} is the open_clip model {source['open_clip']}, which has no towers in the OpenAI layout. It "
            "can be used with probe, rescore and ground, or load_encoder in Python, but not in training or detectors."
        )
    return str(source["checkpoint"])


def _is_timm(config: Path) -> bool:
    if not config.is_file():
        return False
    model = section(read_json(config), "model_cfg", config)
    return "timm_model_name" in section(model, "vision_cfg", config)


def _with_masks_of(model: SmartCLIP, source: Mapping[str, Any], *, fresh: bool) -> SmartCLIP:
    """Apply the mask settings of the source: padding, top-k, and initial bias."""
    if fresh and source.get("mask_bias") and model.mask_network is not None:
        model.mask_network.start_at(float(source["mask_bias"]))
    changes = {k: source[k] for k in ("mask_pad", "mask_top_k") if source.get(k)}
    if changes and model.mask_network is not None:
        overridden = {k: v for k, v in changes.items() if getattr(model.config, k) != v}
        if overridden:
            logger.info("Mask settings that override the checkpoint's: %s.", overridden)
        model.config = model.config.with_(**changes)
        model.mask_network.mask_pad, model.mask_network.top_k = model.config.mask_pad, model.config.mask_top_k
    return model


def load_encoder(source: Mapping[str, Any], device: str = "cpu") -> Any:
    """Load any encoder in eval mode: sources of :func:`load_towers`, or ``dict(open_clip=NAME, checkpoint=PATH)``.

    Args:
        source: with ``open_clip``, the other keys are arguments of ``OpenClipEncoder``.
        device: target device.
    """
    if source.get("checkpoint"):
        resolved = resolve_encoder(source["checkpoint"])
        requested = source.get("open_clip")
        if requested and resolved.get("open_clip", requested) != requested:
            raise UserError(f"{source['checkpoint']} has weights of {resolved['open_clip']}, not {requested}.")
        source = {**source, **resolved}
    if not source.get("open_clip"):
        return load_towers(source).to(device).eval()
    from smartclip_det.models.towers.open_clip_towers import OpenClipEncoder

    options = {k: v for k, v in source.items() if k != "open_clip"}
    known = ("checkpoint", "image_size", "seed", "tokenizer")
    for key in options:
        check_choice("encoder key", key, known)
    return OpenClipEncoder(source["open_clip"], **options).to(device).eval()


def _with_parts(model: SmartCLIP, source: Mapping[str, Any], vision_options: Mapping[str, Any]) -> SmartCLIP:
    """The towers with a mask network or cell weights added, or without cell weights, as set by the source."""
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
