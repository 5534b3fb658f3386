"""Reading images, and making the squares that a tower is trained on."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from smartclip_det.core.errors import UserError, check_choice

#: ``crop``: shorter side to S, centre crop (CLIP). ``pad``: longer side to S, the rest (right, bottom) in the mean
#: colour, as detectors see it. ``squash``: both sides to S.
FITS = ("crop", "pad", "squash")
#: CLIP's mean colour, which becomes (almost) zero when pixels are normalised.
MEAN_COLOUR = (123, 117, 104)


def open_rgb(path: str | Path) -> Image.Image:
    """The RGB image of a file (see :func:`as_rgb`); a missing or broken file is a :class:`UserError`."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No image at {path}.")
    return _decoded(path, str(path))


def decode_rgb(content: bytes, name: str) -> Image.Image:
    """The RGB image of a file's bytes; ``name`` is for messages."""
    return _decoded(io.BytesIO(content), name)


def _decoded(source: Path | io.BytesIO, name: str) -> Image.Image:
    try:
        with Image.open(source) as opened:
            return as_rgb(opened)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"The image {name} cannot be read ({error}).") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, turned by its EXIF orientation, as MMDetection's reader gives it.

    16-bit grey values keep their upper eight bits, where Pillow alone would cut them all to white.
    """
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I"):
        turned = Image.fromarray((np.asarray(turned, dtype=np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    return turned.convert("RGB")


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


def square_boxes(boxes: np.ndarray, size: tuple[int, int], side: int, fit: str = "crop") -> np.ndarray:
    """Boxes of an image, in the pixels of the square that :func:`fit_square` makes of it.

    Args:
        boxes: ``[R, 4]`` xyxy pixels of the image.
        size: width and height of the image.
        side: of the square.
        fit: see :data:`FITS`.

    Returns:
        ``[R, 4]`` xyxy, cut at the square's border; a box outside of it has no area.
    """
    check_choice("fit", fit, FITS)
    width, height = size
    if fit == "squash":
        scale, shift = np.array([side / width, side / height]), np.zeros(2)
    else:
        factor = side / (min(size) if fit == "crop" else max(size))
        resized = np.array([max(1, int(width * factor + 1e-6)), max(1, int(height * factor + 1e-6))])
        scale = resized / np.array([width, height])
        shift = np.round((resized - side) / 2) if fit == "crop" else np.zeros(2)
    corners = np.asarray(boxes, dtype=float).reshape(-1, 2, 2) * scale - shift
    return corners.clip(0, side).reshape(-1, 4)


class SquareImages(Dataset):
    """Images as squares of a tower's size, for a loader."""

    def __init__(self, openers: Sequence[Callable[[], Image.Image]], side: int, fit: str = "crop") -> None:
        """Build.

        Args:
            openers: what gives each RGB image.
            side: of the squares.
            fit: see :func:`fit_square`.
        """
        self.openers, self.side, self.fit = openers, side, check_choice("fit", fit, FITS)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.openers)

    def __getitem__(self, n: int) -> Tensor:
        """``[3, side, side]`` uint8."""
        return pixels(fit_square(self.openers[n](), self.side, self.fit))


def pixels(image: Image.Image) -> Tensor:
    """``[3, H, W]`` uint8 of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
