from __future__ import annotations

import importlib
import warnings

import pytest

from smartclip_det.operators import finder


@pytest.fixture(scope="session")
def compiled():
    """mmcv's compiled operators, where installed (``make setup OPS=compiled``)."""
    pytest.importorskip("mmcv")
    extension = importlib.import_module("mmcv._ext")
    if finder.MARK in vars(extension):
        message = "compiled operators absent: ours are compared with loops alone"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    return extension


@pytest.fixture(scope="session")
def ours():
    """Our operators by name."""
    return finder.functions()
