"""The package's public names: lazy, complete, and quick to import."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import smartclip_det
from tests.conftest import REPO

LAZY = """
import sys, time
start = time.process_time()
import smartclip_det
print(time.process_time() - start)
assert not {"torch", "numpy", "mmengine", "argparse"} & set(sys.modules)
assert "SmartCLIP" in dir(smartclip_det)
"""


def test_importing_is_quick_and_imports_nothing_heavy():
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True, cwd=REPO, env=environment)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.1


@pytest.mark.parametrize("name", [n for n in smartclip_det.__all__ if n != "__version__"])
def test_every_name_is_that_of_its_module(name):
    found = getattr(smartclip_det, name)
    assert found.__name__ == name
    assert found.__module__ == f"smartclip_det.{smartclip_det._HOMES[name]}"


def test_names_that_are_not_there():
    assert set(smartclip_det.__all__) == {*smartclip_det._HOMES, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'SmartClip'"):
        smartclip_det.SmartClip  # noqa: B018
