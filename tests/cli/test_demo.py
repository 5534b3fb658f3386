"""The demo without training: towers with a source of boxes, and conflicting options."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from smartclip_det.apis.demo import DemoOptions, demo
from smartclip_det.apis.predictor_options import PredictorOptions
from smartclip_det.core.errors import UserError
from smartclip_det.models.towers import SmartCLIP


def test_towers_and_a_file_of_boxes_answer_without_training(tmp_path, monkeypatch):
    monkeypatch.setenv("SMARTCLIP_DET_CACHE", str(tmp_path / "cache"))
    towers = SmartCLIP.from_arch("SmartCLIP-tiny", seed=0).save(tmp_path / "tiny.safetensors")
    photos = tmp_path / "photos"
    photos.mkdir()
    for n in range(2):
        pixels = np.random.default_rng(n).integers(0, 255, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{n}.png")
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"0.png": [[0, 0, 40, 40], [50, 10, 96, 64]], "1.png": []}))
    options = DemoOptions(
        [photos],
        ["a cup", "a dog"],
        PredictorOptions(encoder=str(towers), boxes=str(boxes), device="cpu"),
        threshold=0.0,
        heatmap=True,
        ground=True,
        out=tmp_path / "out",
    )
    assert demo(options) == []
    first, second = (json.loads((tmp_path / f"out/{n}.json").read_text()) for n in range(2))
    assert {tuple(d["box"]) for d in first["detections"]} <= {(0, 0, 40, 40), (50, 10, 96, 64)}
    assert len(first["detections"]) == 2
    assert second["detections"] == []
    protocol = first["protocol"]
    assert (protocol["family"], protocol["boxes"]["file"], protocol["config"]) == ("training-free", "boxes.json", None)
    assert protocol["objectness_power"] == 0.5
    for name in ("0.png", "0_map1.png", "0_masks.png", "0_ground.png", "1.png"):
        assert (tmp_path / "out" / name).is_file()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "use --encoder NAME"),
        ({"encoder": "w.pt", "checkpoint": "h.pth"}, "--checkpoint and --cfg-options require --config"),
        ({"config": "c.py", "boxes": "torchvision"}, "--boxes only applies to towers alone"),
        ({"encoder": "smartclip-b16", "boxes": "torchvison"}, "Nearest: torchvision"),
    ],
)
def test_options_that_do_not_go_together_are_told(tmp_path, options, says):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=says):
        demo(DemoOptions([tmp_path / "a.png"], ["a cup"], PredictorOptions(**options), out=tmp_path / "out"))
