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
    width, height = _resized(image.size, side, fit)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    if fit == "squash":
        return resized
    if fit == "crop":
        left, top = round((width - side) / 2), round((height - side) / 2)
        return resized.crop((left, top, left + side, top + side))
    square = Image.new("RGB", (side, side), MEAN_COLOUR)
    square.paste(resized, (0, 0))
    return square


def _resized(size: tuple[int, int], side: int, fit: str) -> tuple[int, int]:
    """Width and height of an image before it is cut or padded to the square."""
    if fit == "squash":
        return side, side
    factor = side / (min(size) if fit == "crop" else max(size))
    # int, as torchvision's Resize cuts the longer side.
    width, height = (max(1, int(n * factor + 1e-6)) for n in size)
    return width, height


def square_scale(size: tuple[int, int], side: int, fit: str = "crop") -> tuple[float, float]:
    """Pixels of the square for each of the image's, in x and in y (see :func:`fit_square`).

    Args:
        size: width and height of the image.
        side: of the square.
        fit: see :data:`FITS`.
    """
    width, height = _resized(size, side, check_choice("fit", fit, FITS))
    return width / size[0], height / size[1]


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
    scale = np.array(square_scale(size, side, fit))
    shift = np.round((np.array(size) * scale - side) / 2) if fit == "crop" else np.zeros(2)
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
