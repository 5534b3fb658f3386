"""Import hook that provides ``mmcv._ext`` from :mod:`smartclip_det.operators` if no compiled one is installed."""

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
#: Attribute that marks our module; a compiled one does not have it.
MARK = "smartclip_det_operators"
_FAMILIES = ("boxes", "regions", "deformable", "losses", "dense")


def functions() -> dict[str, Callable[..., Any]]:
    """All operators implemented here, by the name under which ``mmcv.ops`` calls them. Imports torch."""
    operators: dict[str, Callable[..., Any]] = {}
    for family in _FAMILIES:
        module = importlib.import_module(f"smartclip_det.operators.{family}")
        operators.update({name: getattr(module, name) for name in module.__all__})
    return operators


def missing(name: str) -> Callable[..., Any]:
    """Placeholder for an operator that is not implemented: importing ``mmcv.ops`` works, calling it raises."""

    def absent(*args: Any, **options: Any) -> Any:
        from smartclip_det.core.errors import UserError

        raise UserError(
            f"The mmcv operator {name} is not implemented in smartclip_det. "
            f"Run `{COMPILED_COMMAND}` to compile mmcv's own operators (needs g++ and Python's headers)."
        )

    absent.__name__ = name
    return absent


class _Loader:
    """Populates the module; ``mmcv.ops`` probes names with ``hasattr`` and calls what it gets."""

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
    """Let ``import mmcv._ext`` resolve to our operators; idempotent.

    The finder is appended to ``sys.meta_path``, so a compiled module in mmcv's folder is found first.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
