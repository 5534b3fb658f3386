"""Configs are found by short name from any folder, and still by path."""

from __future__ import annotations

import subprocess
import sys

import pytest

from smartclip_det.core.errors import UserError
from smartclip_det.utils import config_files
from smartclip_det.utils.config_files import config_names, config_root, find_config
from tests.conftest import REPO

RCNN = "ov_coco/open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco"


@pytest.mark.parametrize(
    "name",
    [RCNN, f"{RCNN}.py", f"configs/{RCNN}.py", f"./configs/{RCNN}", RCNN.split("/")[1], str(REPO / "configs" / RCNN)],
)
def test_a_shipped_config_is_found_from_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert find_config(name).resolve() == REPO / f"configs/{RCNN}.py"


def test_a_file_of_ones_own_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / f"configs/{RCNN}.py"
    mine.parent.mkdir(parents=True)
    mine.write_text("a = 1\n")
    assert find_config(f"configs/{RCNN}.py").resolve() == mine
    (tmp_path / "v1.5.py").write_text("a = 1\n")
    assert find_config("v1.5").name == "v1.5.py"


def test_every_shipped_config_has_a_name_that_finds_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {p for p in (REPO / "configs").rglob("*.py") if "_base_" not in p.parts}
    assert {find_config(n).resolve() for n in config_names()} == files
    assert files


def test_a_miss_names_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"Nearest shipped configs: {RCNN}"):
        find_config(RCNN.replace("vocab", "vocabb"))
    with pytest.raises(UserError, match="Nearest shipped configs: .*ov_lvis/open-vocab-mask-rcnn_smartclip-l14"):
        find_config("open-vocab-mask-rcnn_smartclip-l14_8xb8-48_ov-lvis")
    (tmp_path / "mine.py").write_text("")
    with pytest.raises(UserError, match=r"No config at mina.py. Nearest in .: mine.py"):
        find_config("mina.py")
    with pytest.raises(UserError, match="Shipped configs: ov_coco/"):
        find_config("%")


def test_a_name_that_two_folders_have_must_say_which(tmp_path, monkeypatch):
    for folder in "ab":
        (tmp_path / "configs" / folder).mkdir(parents=True)
        (tmp_path / "configs" / folder / "same.py").write_text("")
    monkeypatch.setattr(config_files, "_PACKAGE", tmp_path)
    monkeypatch.chdir(REPO)
    assert config_root() == tmp_path / "configs"
    assert find_config("b/same") == tmp_path / "configs/b/same.py"
    with pytest.raises(UserError, match="name same is ambiguous. Choose one of: a/same, b/same"):
        find_config("same")


def test_looking_for_a_config_imports_nothing_heavy():
    code = "import sys, smartclip_det.utils.config_files; print({'torch', 'mmengine', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
