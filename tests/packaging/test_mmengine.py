"""What compat fixes in upstream MMEngine: safe loading on each of its paths, packages without pkg_resources."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smartclip_det.core.errors import UserError
from smartclip_det.utils import compat
from tests.conftest import REPO


class Bomb:
    """Creates a folder when unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def loading(monkeypatch):
    from mmengine.runner import checkpoint

    monkeypatch.setattr(checkpoint, "torch", checkpoint.torch)
    monkeypatch.setattr(checkpoint, "load_url", checkpoint.load_url)
    compat.install_safe_loading()
    return checkpoint


def test_no_pickled_code_runs_from_a_file_or_an_address(loading, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    file, made = tmp_path / "x.pth", tmp_path / "made"
    torch.save({"state_dict": {}, "message_hub": Bomb(made)}, file)
    for source in (str(file), file.as_uri().replace("file:", "https:", 1)):
        # Only the download is replaced.
        monkeypatch.setattr(
            torch.hub, "download_url_to_file", lambda url, to, *a, **k: Path(to).write_bytes(file.read_bytes())
        )
        with pytest.raises(UserError, match="could run code"):
            loading.CheckpointLoader.load_checkpoint(source, map_location="cpu")
    assert not made.exists()


def test_checkpoints_with_histories_load_from_a_file_and_an_address(loading, tmp_path, monkeypatch):
    from mmengine.logging import HistoryBuffer

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    file = tmp_path / "x.pth"
    history = HistoryBuffer()
    history.update(2.0)
    torch.save({"state_dict": {"a": torch.ones(2)}, "message_hub": {"loss": history}}, file)
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda url, to, *a, **k: Path(to).write_bytes(file.read_bytes())
    )
    for source in (str(file), "https://example.org/x.pth"):
        content = loading._load_checkpoint(source, map_location="cpu")
        assert torch.equal(content["state_dict"]["a"], torch.ones(2))
        assert content["message_hub"]["loss"].current() == 2.0


def test_mmengine_still_writes_checkpoints(loading, tmp_path):
    loading.save_checkpoint({"state_dict": {"a": torch.ones(1)}}, str(tmp_path / "y.pth"))
    assert torch.equal(loading._load_checkpoint(str(tmp_path / "y.pth"))["state_dict"]["a"], torch.ones(1))


LOOKUP = """
import os, sys
sys.modules["pkg_resources"] = None
from smartclip_det.engine.config import load_config
assert load_config("mine.py").model.type == "FasterRCNN"
from mmengine.utils import get_installed_path, is_installed
import importlib.util
assert get_installed_path("mmdet") == os.path.dirname(importlib.util.find_spec("mmdet").origin)
assert get_installed_path("faster-coco-eval").endswith("faster_coco_eval")
assert is_installed("mmdet") and is_installed("faster-coco-eval") and not is_installed("no_such_package")
"""


def test_configs_of_mmdetection_are_found_without_pkg_resources(tmp_path):
    (tmp_path / "mine.py").write_text("_base_ = 'mmdet::_base_/models/faster-rcnn_r50_fpn.py'\n")
    done = subprocess.run(
        [sys.executable, "-c", LOOKUP],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    assert done.returncode == 0, done.stderr
