"""Where towers come from in a config: a checkpoint file, or a named architecture with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smartclip_det.core.errors import UserError, nearest
from smartclip_det.models.towers.smartclip import SmartCLIP

_KEYS = {"checkpoint": ("checkpoint", "activation", "stretch"), "arch": ("arch", "seed")}


def load_towers(source: Mapping[str, Any], **vision_options: Any) -> SmartCLIP:
    """Build towers.

    Args:
        source: ``dict(checkpoint=PATH, activation=None, stretch=False)`` or ``dict(arch=NAME, seed=0)``. A
            checkpoint of None is passed over, so a config can offer both: ``dict(checkpoint=None, arch=NAME)``.
        vision_options: see :class:`SmartCLIP`.

    Raises:
        UserError: when neither is given, or for unknown keys.
    """
    known = [k for keys in _KEYS.values() for k in keys]
    for key in source:
        if key not in known:
            raise UserError(f"Unknown towers key {key!r}. Nearest: {', '.join(nearest(key, known)) or 'none'}.")
    if source.get("checkpoint"):
        return SmartCLIP.from_checkpoint(
            source["checkpoint"], activation=source.get("activation"), stretch=source.get("stretch", False),
            **vision_options,
        )  # fmt: skip
    if source.get("arch"):
        return SmartCLIP.from_arch(source["arch"], seed=source.get("seed", 0), **vision_options)
    raise UserError("towers need dict(checkpoint=PATH) or dict(arch=NAME, seed=0).")
