"""How a picture becomes the fixed input of a graph: one rule for the file's metadata, the check and PyTorch.

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

#: The longer side of an input at most, in pixels.
LARGEST = 4096


@dataclass(frozen=True)
class Preprocessing:
    """From RGB pixels to ``images [1, 3, H, W]``.

    Attributes:
        size: (H, W).
        mean: of RGB in 0..255, subtracted.
        std: of RGB in 0..255, divided by.
        resize: ``fit``: one factor for both sides, so that the picture fits inside; what is left (right, bottom) is 0
            after normalisation. ``crop``: the shorter side to H, then the square in the middle. ``squash``: both sides.
        interpolation: ``bilinear`` or ``bicubic``.
        antialias: whether shrinking averages over all pixels (Pillow) or looks at the nearest alone (OpenCV).
        channels: order of colours.
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
    """H and W of an input.

    Raises:
        UserError: for sides that are not whole patches, or out of range.
    """
    if any(n % patch or not 0 < n <= LARGEST for n in size):
        near = [min(max(patch, round(n / patch) * patch), LARGEST // patch * patch) for n in size]
        raise UserError(
            f"An input of {size[0]} x {size[1]} pixels is not possible: both sides must be multiples of {patch} (the "
            f"tower's patch) up to {LARGEST}. Nearest: --size {near[0]} {near[1]}."
        )
    return size


def tower_preprocessing(towers: Any, size: tuple[int, int]) -> Preprocessing:
    """CLIP's own for a square, and both sides resized for another rectangle."""
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
    """H and W for pictures that lie, from the size in the test pipeline of a config."""
    while "pipeline" not in dataset:
        dataset = dataset["dataset"]
    scale = next(s["scale"] for s in dataset["pipeline"] if s["type"].endswith("Resize"))
    longer, shorter = max(scale), min(scale)
    return -(-shorter // divisor) * divisor, -(-longer // divisor) * divisor


class FitInside:
    """Stands in for a detector's test pipeline: pictures fit inside of H x W, and nothing else changes."""

    def __init__(self, size: tuple[int, int], interpolation: str) -> None:
        """Build.

        Args:
            size: H and W.
            interpolation: of OpenCV, as in the config's ``Resize``.
        """
        self.size, self.interpolation = size, interpolation

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """``img [h, w, 3]`` (BGR) to ``inputs`` and ``data_samples`` as of MMDetection's pipelines."""
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
    """Give a detector's family inputs of H x W from now on, as its graph has them; returns the rule."""
    interpolation = next((t.interpolation for t in family.pipeline.transforms if hasattr(t, "scale")), "bilinear")
    family.pipeline = FitInside(size, interpolation)
    steps = family.detector.data_preprocessor
    steps.pad_size_divisor = 1
    family.detector.data_preprocessor = _Padded(steps, size)
    mean, std = (tuple(float(v) for v in values.flatten()) for values in (steps.mean, steps.std))
    return Preprocessing(size, mean, std, "fit", interpolation, False)


class _Padded(nn.Module):
    """A data preprocessor whose normalised images are filled up to H x W with zeros (right, bottom)."""

    def __init__(self, steps: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.steps, self.size = steps, size

    def forward(self, data: Any, training: bool = False) -> dict[str, Any]:
        """As the preprocessor's."""
        found: dict[str, Any] = self.steps(data, training)
        height, width = found["inputs"].shape[-2:]
        found["inputs"] = functional.pad(found["inputs"], (0, self.size[1] - width, 0, self.size[0] - height))
        return found
