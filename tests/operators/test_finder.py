"""How ``mmcv._ext`` is found: ours if none is compiled, a compiled one before ours, optionally at Python's start."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import sysconfig
import types
from pathlib import Path

import pytest

from smartclip_det.core.errors import UserError
from smartclip_det.operators import finder
from smartclip_det.utils import compat
from tests.conftest import REPO

START = REPO / "smartclip_det/operators/smartclip_det.pth"


def run(code, *folders):
    """Run code with the checkout and folders on the path and nothing of ours imported."""
    path = ":".join(str(f) for f in (*folders, REPO))
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/", env={"PYTHONPATH": path}
    )


@pytest.fixture
def library(tmp_path):
    """A package named mmcv with a compiled module, laid out as in its wheel."""
    folder = tmp_path / "mmcv"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "_ext.py").write_text("compiled = True")
    return tmp_path


def test_compiled_operators_come_first(library):
    done = run("import smartclip_det, mmcv._ext; print(vars(mmcv._ext)['compiled'])", library)
    assert done.stdout == "True\n", done.stderr


def test_a_line_at_the_start_of_python_is_enough(library, tmp_path):
    """Files that the wheel installs next to the package, so that MMDetection can be imported first."""
    (library / "mmcv/_ext.py").unlink()
    site = tmp_path / "site"
    site.mkdir()
    shutil.copy(START, site)
    code = "import sys, importlib.util, mmcv; print(importlib.util.find_spec('mmcv._ext'), 'torch' in sys.modules)"
    if not (Path(sysconfig.get_paths()["purelib"]) / START.name).is_file():
        assert run(code, library).stdout == "None False\n"
    done = run(f"import site; site.addsitedir({str(site)!r}); {code}", library)
    assert "smartclip_det.operators.finder" in done.stdout, done.stderr
    assert done.stdout.endswith(" False\n")
    assert done.stderr == ""


def test_the_line_is_silent_where_the_package_is_gone(tmp_path):
    shutil.copy(START, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", f"import site; site.addsitedir({str(tmp_path)!r}); print('on')"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={},
    )
    assert (done.stdout, done.stderr) == ("on\n", "")


def test_it_is_installed_once_and_knows_no_other_module():
    count = len(sys.meta_path)
    finder.install()
    finder.install()
    assert len(sys.meta_path) == count
    assert importlib.util.find_spec("smartclip_det._ext") is None


def test_every_operator_is_in_the_module(ours):
    spec = importlib.util.spec_from_loader(finder.EXTENSION, finder._Loader())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert all(getattr(module, name) is function for name, function in ours.items())
    assert hasattr(module, "box_iou_rotated")
    assert not hasattr(module, "__path__")


def test_what_is_in_force_is_told(monkeypatch):
    module = types.ModuleType("mmcv._ext")
    monkeypatch.setitem(sys.modules, "mmcv._ext", module)
    for version, words in (("not available", "compiled, CPU only"), ("13.0", "compiled, CUDA 13.0")):
        module.get_compiling_cuda_version = lambda version=version: version
        assert compat.operators_backend() == words
    setattr(module, finder.MARK, True)
    assert compat.operators_backend() == "by torchvision and torch"
    monkeypatch.setitem(sys.modules, "mmcv._ext", None)
    with pytest.raises(UserError, match=r"cannot be loaded .*make setup OPS=compiled.*make setup"):
        compat.operators_backend()
