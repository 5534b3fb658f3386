"""Imports of optional packages, with install instructions."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from smartclip_det.core.errors import UserError


def optional(module: str, extra: str) -> Any:
    """Import a module that belongs to an extra of this package.

    Raises:
        UserError: if it is not installed, with the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(
            f'This needs {module.partition(".")[0]} ({error}): pip install "smartclip_det[{extra}]".'
        ) from error
