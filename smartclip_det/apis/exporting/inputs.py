"""Preprocessing for the fixed input of a graph, shared by the metadata, the check and PyTorch.

Shape letters: H W pixels of the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from smartclip_det.core.errors import UserError
from smartclip_det.utils.images import fit_square, pixels

#: Maximum side of an input in pixels.
LARGEST = 4096


@dataclass(frozen=True)
class Preprocessing:
    """From RGB pixels to ``images [1, 3, H, W]``.

    Attributes:
        size: (H, W).
        mean: RGB mean in 0..255.
        std: RGB standard deviation in 0..255.
        resize: ``fit``: keep the aspect ratio, then pad right and bottom with 0 after normalisation. ``crop``: shorter
            side to H, then centre crop. ``squash``: ignore the aspect ratio.
        interpolation: ``bilinear`` or ``bicubic``.
        antialias: True for Pillow's resize, False for OpenCV's.
        channels: colour order.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str
    interpolation: str
    antialias: bool
    channels: str = "RGB"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the metadata."""
        return asdict(self)


def check_size(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Check H and W of an input.

    Raises:
        UserError: a side is no multiple of the patch size, or out of range.
    """
    if any(n % patch or not 0 < n <= LARGEST for n in size):
        near = [min(max(patch, round(n / patch) * patch), LARGEST // patch * patch) for n in size]
        raise UserError(
            f"An input of {size[0]} x {size[1]} pixels is not possible: both sides must be multiples of {patch} (the "
            f"tower's patch) up to {LARGEST}. Nearest: --size {near[0]} {near[1]}."
        )
    return size


def tower_preprocessing(towers: Any, size: tuple[int, int]) -> Preprocessing:
    """CLIP's preprocessing for a square input; ``squash`` for other rectangles."""
    mean, std = (tuple(float(v) * 255 for v in values) for values in towers.image_statistics())
    return Preprocessing(size, mean, std, "crop" if size[0] == size[1] else "squash", "bicubic", True)


def tower_input(image: Image.Image, rule: Preprocessing) -> Tensor:
    """``[1, 3, H, W]`` of an RGB image."""
    height, width = rule.size
    if rule.resize == "crop":
        resized = fit_square(image, height, "crop")
    else:
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (rule.mean, rule.std))
    return ((pixels(resized).float() - mean) / std)[None]


def detector_size(dataset: Mapping[str, Any], divisor: int) -> tuple[int, int]:
    """H and W for landscape images, from the test pipeline of a config.

    Raises:
        UserError: the pipeline resizes to no fixed size.
    """
    while "pipeline" not in dataset:
        dataset = dataset["dataset"]
    scale = next((s["scale"] for s in dataset["pipeline"] if s["type"].endswith("Resize") and "scale" in s), None)
    if scale is None:
        raise UserError("The test pipeline of the config resizes to no fixed size: give --size H W.")
    longer, shorter = max(scale), min(scale)
    return -(-shorter // divisor) * divisor, -(-longer // divisor) * divisor


class FitInside:
    """Replacement for a detector's test pipeline that resizes images to fit into H x W.

    Args:
        size: H and W.
        interpolation: OpenCV interpolation of the config's ``Resize``.
    """

    def __init__(self, size: tuple[int, int], interpolation: str) -> None:
        self.size, self.interpolation = size, interpolation

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """``img [h, w, 3]`` (BGR) to ``inputs`` and ``data_samples``, as ``PackDetInputs``."""
        import mmcv
        from mmdet.structures import DetDataSample

        image = data["img"]
        height, width = image.shape[:2]
        factor = min(self.size[0] / height, self.size[1] / width)
        limits = zip((width, height), self.size[::-1], strict=True)
        new = [max(1, min(limit, int(n * factor + 0.5))) for n, limit in limits]
        resized = mmcv.imresize(image, tuple(new), interpolation=self.interpolation)
        facts = {
            "img_id": data.get("img_id", 0),
            "ori_shape": (height, width),
            "img_shape": (new[1], new[0]),
            "scale_factor": (new[0] / width, new[1] / height),
        }
        inputs = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        return {"inputs": inputs, "data_samples": DetDataSample(metainfo=facts)}


def fix_input(family: Any, size: tuple[int, int]) -> Preprocessing:
    """Switch a predictor's detector to inputs of H x W, like its graph; returns the preprocessing."""
    interpolation = next((t.interpolation for t in family.pipeline.transforms if hasattr(t, "scale")), "bilinear")
    family.pipeline = FitInside(size, interpolation)
    steps = family.detector.data_preprocessor
    steps.pad_size_divisor = 1
    family.detector.data_preprocessor = _Padded(steps, size)
    mean, std = (tuple(float(v) for v in values.flatten()) for values in (steps.mean, steps.std))
    return Preprocessing(size, mean, std, "fit", interpolation, False)


class _Padded(nn.Module):
    """A data preprocessor that pads normalised images with zeros to H x W (right, bottom)."""

    def __init__(self, steps: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.steps, self.size = steps, size

    def forward(self, data: Any, training: bool = False) -> dict[str, Any]:
        """Preprocess and pad."""
        found: dict[str, Any] = self.steps(data, training)
        height, width = found["inputs"].shape[-2:]
        found["inputs"] = functional.pad(found["inputs"], (0, self.size[1] - width, 0, self.size[0] - height))
        return found
