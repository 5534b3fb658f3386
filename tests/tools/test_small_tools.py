from __future__ import annotations

import json

import pytest

from smartclip_det.core.text_bank import TextBank
from smartclip_det.models.towers import SmartCLIP, read_checkpoint
from tests.conftest import REPO
from tests.processes import run_process

TOOLS = sorted(p.name for p in (REPO / "tools").glob("*.py"))


def run(tool, *args, cwd=REPO):
    return run_process(REPO / "tools" / tool, *args, cwd=cwd)


@pytest.mark.parametrize("tool", TOOLS)
def test_help_has_examples(tool, tmp_path):
    done = run(tool, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.count("smartclip-det ") >= 2, "usage, and an example"


def test_encode_texts(tmp_path):
    (tmp_path / "names.txt").write_text("red mug\ndog\n")
    done = run(
        "encode_texts.py",
        "--names",
        tmp_path / "names.txt",
        "--arch",
        "SmartCLIP-tiny",
        "--out",
        tmp_path / "b.safetensors",
        "--no-cache",
    )
    assert done.returncode == 0, done.stderr
    bank = TextBank.load(tmp_path / "b.safetensors")
    assert bank.names == ("red mug", "dog")
    stamp = json.loads((tmp_path / "b.json").read_text())["protocol"]
    assert stamp["checkpoint_hash"] == SmartCLIP.from_arch("SmartCLIP-tiny").checkpoint_hash
    done = run(
        "encode_texts.py", "--names", "ov_coco_56", "--arch", "SmartCLIP-tiny", "--out", tmp_path / "c.safetensors"
    )
    assert done.returncode == 2
    assert "nearest: ov_coco_65" in done.stderr


def test_convert_checkpoint_there_and_back(tmp_path):
    model = SmartCLIP.from_arch("SmartCLIP-tiny")
    model.save(tmp_path / "a.safetensors")
    done = run("convert_checkpoint.py", tmp_path / "a.safetensors", tmp_path / "b.pth", "--layout", "native")
    assert done.returncode == 0, done.stderr
    assert read_checkpoint(tmp_path / "b.pth").hash == model.checkpoint_hash
    done = run("convert_checkpoint.py", tmp_path / "b.pth", tmp_path / "c.safetensors", "--stretch")
    assert "248" in done.stdout
    assert read_checkpoint(tmp_path / "c.safetensors").config.context_length == 248
    assert run("convert_checkpoint.py", tmp_path / "b.pth", tmp_path / "c.bin").returncode == 2
    assert run("convert_checkpoint.py", tmp_path / "absent.pt", tmp_path / "c.pt").returncode == 2


def test_print_config(tmp_path):
    config = REPO / "configs/real_smoke/open-vocab-rcnn_smartclip-b16_real-smoke.py"
    done = run("print_config.py", config, "--cfg-options", "data_root=here/")
    assert "data_root='here/'" in done.stdout
    done = run("print_config.py", config, "--check", "--cfg-options", "model.roi_head.bbox_head.fc_chanels=3")
    assert done.returncode == 2
    assert "fc_chanels" in done.stderr
