"""Finds ``mmcv._ext`` in :mod:`smartclip_det.operators` when no compiled one is installed."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

EXTENSION = "mmcv._ext"
COMPILED_COMMAND = "make setup OPS=compiled"
#: What stands here tells our module from a compiled one.
MARK = "smartclip_det_operators"
_FAMILIES = ("boxes", "regions", "deformable", "losses", "dense")


def functions() -> dict[str, Callable[..., Any]]:
    """Every operator that we have, by the name under which ``mmcv.ops`` calls it. Imports torch."""
    found: dict[str, Callable[..., Any]] = {}
    for family in _FAMILIES:
        module = importlib.import_module(f"smartclip_det.operators.{family}")
        found.update({name: getattr(module, name) for name in module.__all__})
    return found


def missing(name: str) -> Callable[..., Any]:
    """Stands in for an operator that we do not have: importing ``mmcv.ops`` works, calling it tells the way out."""

    def absent(*args: Any, **options: Any) -> Any:
        from smartclip_det.core.errors import UserError

        raise UserError(
            f"The operator {name} of mmcv has no form by torchvision and torch in smartclip_det. "
            f"Run `{COMPILED_COMMAND}` to compile mmcv's own operators (needs g++ and Python's headers)."
        )

    absent.__name__ = name
    return absent


class _Loader:
    """Fills the module; ``mmcv.ops`` asks for names with ``hasattr`` and calls what it gets."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        def lookup(name: str) -> Callable[..., Any]:
            if name.startswith("__"):
                raise AttributeError(name)
            return missing(name)

        vars(module).update(functions(), __getattr__=lookup, **{MARK: True})


class _Finder:
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != EXTENSION:
            return None
        return importlib.util.spec_from_loader(name, _Loader(), origin=__name__)  # type: ignore[arg-type]


def install() -> None:
    """Let ``import mmcv._ext`` find our operators; safe to repeat.

    The finder is asked last: a compiled module beside mmcv's other files is found before it.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
