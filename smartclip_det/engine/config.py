"""Loading configs for the tools: linked variables, norm layers that the machine supports, readable errors.

MMEngine resolves variables while it reads the config file, so ``--cfg-options data_root=...`` alone would have no
effect. Here an override of a variable in :data:`LINKED` also replaces its old value wherever a key of that name has it.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

from smartclip_det.core.errors import UserError, nearest
from smartclip_det.utils import compat
from smartclip_det.utils.config_files import find_config

#: Keys that can be overridden even if the config does not have them.
_RUNNER_KEYS = (
    *tuple(inspect.signature(Runner.__init__).parameters)[1:],
    "find_unused_parameters",
    "model_wrapper_cfg",
    "global_batch_size",
    "strategy",
)
logger = logging.getLogger(__name__)
LINKED = ("data_root", "towers", "norm_cfg")


def load_config(path: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config, apply overrides, and link variables.

    Args:
        path: a file, or the short name of a shipped config (:func:`find_config`).
        options: overrides, with dots for nested keys.

    Raises:
        UserError: for a missing file (with similar names), an invalid config, an override whose first key the config
            does not have (with the closest ones), or one that would have no effect.
    """
    path = find_config(path)
    compat.install_package_lookup()
    try:
        config = Config.fromfile(path)
    except (SyntaxError, KeyError, ImportError, TypeError, FileNotFoundError) as error:
        raise UserError(f"{path} cannot be read as a config ({type(error).__name__}: {error}).") from error
    options = dict(options or {})
    for key in options:
        _check_override(key, config)
    linked = {k: v for k, v in options.items() if k.split(".")[0] in LINKED}
    before = {name: copy.deepcopy(config.get(name)) for name in LINKED}
    try:
        config.merge_from_dict(linked)
        for name in {k.split(".")[0] for k in linked}:
            for key, value in config.items():
                if key != name:
                    _link(value, name, before[name], config[name])
        # After linking, so that an override of one place wins over a variable.
        config.merge_from_dict({k: v for k, v in options.items() if k not in linked})
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise UserError(f"--cfg-options cannot be applied to {path} ({type(error).__name__}: {error}).") from error
    joint, each = config.get("global_batch_size"), options.get("train_dataloader.batch_size")
    if joint and each is not None:
        raise UserError(
            f"--cfg-options train_dataloader.batch_size={each} has no effect, because {path.name} sets "
            f"global_batch_size={joint} for all processes together. Override global_batch_size."
        )
    return config


def _check_override(key: str, config: Config) -> None:
    """Raise if an override would have no effect: it must name a config section or a linked variable."""
    first = key.split(".")[0]
    if first in _RUNNER_KEYS or (first in LINKED and first in config):
        return
    if first in config:
        raise UserError(
            f"--cfg-options {key}: {first!r} is a variable that was resolved while reading the config; overriding it "
            f"has no effect. Override the places where it is used. Linked variables: {', '.join(LINKED)}."
        )
    near = nearest(first, [*config.keys(), *_RUNNER_KEYS])
    raise UserError(f"--cfg-options {key}: the config has no {first!r}. Nearest: {', '.join(near) or 'none'}.")


def _link(node: Any, name: str, old: Any, new: Any) -> None:
    """Replace every ``name: old`` below a node by ``name: new``; other values were set on purpose."""
    if isinstance(node, dict):
        for key in list(node):
            if key == name and node[key] == old:
                node[key] = ConfigDict(copy.deepcopy(new)) if isinstance(new, dict) else new
            else:
                _link(node[key], name, old, new)
    elif isinstance(node, list | tuple):
        for item in node:
            _link(item, name, old, new)


def fit_norm_layers(config: Config, distributed: bool) -> bool:
    """Replace SyncBN by BN if it cannot run (CPU, or one process); returns whether anything changed."""
    if distributed and torch.cuda.is_available():
        return False
    changed = _replace_sync_bn(config._cfg_dict)
    if changed:
        reason = "no CUDA device" if not torch.cuda.is_available() else "one process"
        logger.warning("Replaced SyncBN by BN in %d places (%s).", changed, reason)
    return bool(changed)


def _replace_sync_bn(node: Any) -> int:
    changed = 0
    if isinstance(node, dict):
        if node.get("type") in ("SyncBN", "MMSyncBN"):
            node["type"] = "BN"
            changed += 1
        changed += sum(_replace_sync_bn(v) for v in node.values())
    elif isinstance(node, list | tuple):
        changed += sum(_replace_sync_bn(v) for v in node)
    return changed
