"""Service of the web page on tiny random towers, with boxes from a file, so that answers take milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from smartclip_det.apis.app.service import AppService
from smartclip_det.apis.predictor_options import PredictorOptions, load_predictor
from smartclip_det.models.towers import SmartCLIP

SIZE = (64, 48)


def write_images(folder: Path, count: int) -> list[Path]:
    """Write noise images, and boxes for each to ``boxes.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, boxes = [], {}
    for n in range(count):
        generator = np.random.default_rng(n)
        paths.append(folder / f"photo {n}.png")
        Image.fromarray(generator.integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)).save(paths[-1])
        corners = np.sort(generator.integers(0, np.array(SIZE) - 4, (5, 2, 2)), axis=1)
        corners[:, 1] += 4
        boxes[paths[-1].name] = corners.reshape(5, 4).tolist()
    (folder / "boxes.json").write_text(json.dumps(boxes))
    return paths


def tiny_options(folder: Path) -> PredictorOptions:
    """Options with tiny towers and the boxes of :func:`write_images`."""
    towers = SmartCLIP.from_arch("SmartCLIP-tiny", seed=0).save(folder / "tiny.safetensors")
    return PredictorOptions(encoder=str(towers), boxes=str(folder / "boxes.json"), device="cpu")


def tiny_service(folder: Path, count: int) -> tuple[AppService, list[Path]]:
    """A service, and ``count`` images that it has boxes for."""
    paths = write_images(folder, count)
    options = tiny_options(folder)
    return AppService(load_predictor(options), options), paths
