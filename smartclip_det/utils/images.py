"""Images to the squares that a tower is trained on."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from smartclip_det.core.errors import check_choice

#: ``crop``: shorter side to S, centre crop (CLIP). ``pad``: longer side to S, the rest (right, bottom) in the mean
#: colour, as detectors see it. ``squash``: both sides to S.
FITS = ("crop", "pad", "squash")
#: CLIP's mean colour, which becomes (almost) zero when pixels are normalised.
MEAN_COLOUR = (123, 117, 104)


def fit_square(image: Image.Image, side: int, fit: str = "crop") -> Image.Image:
    """An RGB image as a ``side`` x ``side`` square, bicubic; see :data:`FITS`."""
    check_choice("fit", fit, FITS)
    width, height = image.size
    if fit == "squash":
        return image.resize((side, side), Image.Resampling.BICUBIC)
    scale = side / (min(width, height) if fit == "crop" else max(width, height))
    # int, as torchvision's Resize cuts the longer side.
    size = (max(1, int(width * scale + 1e-6)), max(1, int(height * scale + 1e-6)))
    resized = image.resize(size, Image.Resampling.BICUBIC)
    if fit == "crop":
        left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
        return resized.crop((left, top, left + side, top + side))
    square = Image.new("RGB", (side, side), MEAN_COLOUR)
    square.paste(resized, (0, 0))
    return square


def pixels(image: Image.Image) -> Tensor:
    """``[3, H, W]`` uint8 of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
