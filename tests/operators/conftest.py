from __future__ import annotations

import importlib
import sys
import warnings
from types import SimpleNamespace

import pytest

from smartclip_det.operators import finder


@pytest.fixture(scope="session")
def compiled():
    """mmcv's compiled operators, if installed (``make setup OPS=compiled``)."""
    pytest.importorskip("mmcv")
    extension = importlib.import_module("mmcv._ext")
    if finder.MARK in vars(extension):
        message = "no compiled operators: ours are compared only with loops"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    return extension


@pytest.fixture(scope="session", autouse=True)
def in_force(ours):
    """Make ``mmcv.ops`` call our operators, even if compiled ones are installed."""
    importlib.import_module("mmcv.ops")
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            extension = getattr(module, "ext_module", None) if name.startswith("mmcv.ops.") else None
            if extension is not None and finder.MARK not in vars(extension):
                patch.setattr(module, "ext_module", SimpleNamespace(**ours))
        yield


@pytest.fixture(scope="session")
def ours():
    """Our operators by name."""
    return finder.functions()
