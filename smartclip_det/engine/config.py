"""Reading configs for the tools: linked variables, norm layers that a machine can run, readable errors.

MMEngine resolves a config's variables while it reads the file, so ``--cfg-options data_root=...`` alone would change
nothing. Here every key named like one of :data:`LINKED`, wherever it stands, takes the value of the top-level
variable of that name after all overrides.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

from smartclip_det.core.errors import UserError, nearest

#: Keys that a config need not have for an override to mean something.
_RUNNER_KEYS = (*tuple(inspect.signature(Runner.__init__).parameters)[1:], "find_unused_parameters")
logger = logging.getLogger(__name__)
LINKED = ("data_root", "towers", "norm_cfg")


def load_config(path: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config file, apply overrides, and link variables.

    Raises:
        UserError: for a missing file (with near names of its folder), a config that cannot be read, or an override
            whose first key the config does not have (with the nearest ones).
    """
    path = Path(path)
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path("configs")
        near = nearest(path.name, [p.name for p in folder.rglob("*.py")])
        raise UserError(f"No config at {path}." + (f" Nearest in {folder}: {', '.join(near)}." if near else ""))
    try:
        config = Config.fromfile(path)
    except (SyntaxError, KeyError, ImportError, TypeError, FileNotFoundError) as error:
        raise UserError(f"{path} cannot be read as a config ({type(error).__name__}: {error}).") from error
    for key in options or {}:
        first = key.split(".")[0]
        if first not in config and first not in _RUNNER_KEYS:
            near = nearest(first, [*config.keys(), *_RUNNER_KEYS])
            raise UserError(f"--cfg-options {key}: the config has no {first!r}. Nearest: {', '.join(near) or 'none'}.")
    if options:
        config.merge_from_dict(dict(options))
    link_variables(config)
    return config


def link_variables(config: Config) -> None:
    """Give every key named like a linked variable the value of the top-level one."""
    for name in LINKED:
        if name in config:
            for key, value in config.items():
                if key != name:
                    _link(value, name, config[name])


def _link(node: Any, name: str, value: Any) -> None:
    if isinstance(node, dict):
        for key in list(node):
            if key == name and node[key] is not None:
                node[key] = ConfigDict(value) if isinstance(value, dict) else value
            else:
                _link(node[key], name, value)
    elif isinstance(node, list | tuple):
        for item in node:
            _link(item, name, value)


def fit_norm_layers(config: Config, distributed: bool) -> bool:
    """Replace SyncBN by BN where it cannot run (CPU, or one process); logged, and told by the return value."""
    if distributed and torch.cuda.is_available():
        return False
    changed = _replace_sync_bn(config._cfg_dict)
    if changed:
        reason = "no CUDA device" if not torch.cuda.is_available() else "one process"
        logger.warning("SyncBN replaced by BN in %d places (%s).", changed, reason)
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
