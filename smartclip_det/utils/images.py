"""Reading images and resizing them to the square input of a tower."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.words import FITS

#: CLIP's mean colour, which normalises to (almost) zero.
MEAN_COLOUR = (123, 117, 104)
#: Reduced JPEG decoding: maps the reduction factor to the margin in pixels that must remain per needed pixel on each
#: side. A smaller margin deviates more from a full-size resize. See :func:`read_square`.
REDUCED_MARGINS = {8: 3, 4: 3, 2: 1}
#: Largest mean pixel difference of reduced decoding, in levels of 255: averaged over photographs, and in any one.
REDUCED_DISTANCE = (1.0, 4.0)
#: Longest resized side before cropping, in sides of the square: an image of 1 x 60,000 pixels would take gigabytes.
_LONGEST = 16


def open_rgb(path: str | Path) -> Image.Image:
    """Open an image file as RGB (see :func:`as_rgb`); a missing or broken file is a :class:`UserError`."""
    return _decoded(_existing(path), str(path), as_rgb)


def decode_rgb(content: bytes, name: str) -> Image.Image:
    """Decode the bytes of an image file as RGB; ``name`` is used in messages."""
    return _decoded(io.BytesIO(content), name, as_rgb)


def read_square(source: str | Path | bytes, name: str, side: int, fit: str = "crop", *, exact: bool) -> Image.Image:
    """Read a file or its bytes as a square; equals :func:`fit_square` of the full image if ``exact``.

    Args:
        source: a file, or its content.
        name: used in messages.
        side: side of the square.
        fit: see :data:`FITS`.
        exact: decode the full image. Otherwise JPEG files are decoded at 1/2, 1/4 or 1/8 if that leaves
            :data:`REDUCED_MARGINS` times the needed pixels on each side, and nothing outside the square is resized;
            pixels differ by at most :data:`REDUCED_DISTANCE`. For training only.
    """

    def square(opened: Image.Image) -> Image.Image:
        size = opened.size
        if not exact:
            target = _resized(size, side, fit)
            reduction = next(
                (
                    k
                    for k, margin in REDUCED_MARGINS.items()
                    if all(n >= k * margin * w for n, w in zip(size, target, strict=True))
                ),
                1,
            )
            if reduction > 1:
                opened.draft(None, (size[0] // reduction, size[1] // reduction))
        turned = opened.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        # The reduced size is rounded up, so the layout of the square uses the original size.
        return fit_square(as_rgb(opened), side, fit, size[::-1] if turned else size, full_resize=exact)

    return _decoded(io.BytesIO(source) if isinstance(source, bytes) else _existing(source), name, square)


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise UserError(f"No image at {path}.")
    return Path(path)


def _decoded(source: Path | io.BytesIO, name: str, take: Callable[[Image.Image], Image.Image]) -> Image.Image:
    try:
        with Image.open(source) as opened:
            return take(opened)
    except Exception as error:
        # Decoders raise all kinds of errors on broken files: struct.error, EOFError, IndexError, zlib.error ...
        raise UserError(f"The image {name} cannot be read ({str(error) or type(error).__name__}).") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB and apply its EXIF orientation, as MMDetection's loader does.

    16-bit grey values keep their upper eight bits; Pillow would clip them to white. Transparency is dropped, as in
    CLIP's transform.

    Raises:
        UserError: for pixels without an agreed range (floating point in 0..1, more than 16 bits).
    """
    turned = ImageOps.exif_transpose(image)
    if turned.mode == "F" or turned.mode.startswith("I"):
        turned = _eight_bits(turned)
    if turned.mode == "P" and "transparency" in turned.info:
        # Via RGBA: the same colours, without Pillow's warning about palettes with transparency.
        turned = turned.convert("RGBA")
    try:
        return turned.convert("RGB")
    except ValueError as error:
        raise UserError(f"pixels of mode {turned.mode} cannot be converted to RGB ({error}); save it as RGB") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Reduce grey values of more than 8 bits to 8 bits."""
    values: np.ndarray = np.asarray(image, dtype=np.float64 if image.mode == "F" else np.int64)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F" and not (low >= 0 and 1 < high <= 255):
        raise UserError(f"floating-point pixels in {low:g}..{high:g} have no agreed range; save the image with 8 bits")
    if low < 0 or high > 65535:
        raise UserError(f"grey values in {low:g}..{high:g} exceed 16 bits; save the image with 8 bits")
    # 32-bit values that fit into 8 bits are taken as 8-bit values.
    eight = image.mode == "F" or (image.mode == "I" and high <= 255)
    return Image.fromarray((values if eight else values >> 8).astype(np.uint8))


def fit_square(
    image: Image.Image, side: int, fit: str = "crop", size: tuple[int, int] | None = None, *, full_resize: bool = True
) -> Image.Image:
    """Resize an RGB image to a ``side`` x ``side`` square, bicubic; see :data:`FITS`.

    Args:
        image: RGB.
        side: side of the square.
        fit: see :data:`FITS`.
        size: original width and height, if ``image`` was decoded at a reduced size.
        full_resize: resize the full image before cropping, as CLIP's own transform does.
    """
    check_choice("fit", fit, FITS)
    width, height = _resized(size or image.size, side, fit)
    if fit == "crop":
        left, top = round((width - side) / 2), round((height - side) / 2)
        if not full_resize or max(width, height) > _LONGEST * side:
            return _resize_part(image, (width, height), (left, top), side)
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        return resized.crop((left, top, left + side, top + side))
    if fit == "squash":
        if image.height > _LONGEST * max(side, image.width):
            # Pillow resizes horizontally first, over all rows.
            image = image.resize((image.width, side), Image.Resampling.BICUBIC)
        return image.resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side, side), MEAN_COLOUR)
    square.paste(image.resize((width, height), Image.Resampling.BICUBIC), (0, 0))
    return square


def _resize_part(image: Image.Image, resized: tuple[int, int], corner: tuple[int, int], side: int) -> Image.Image:
    """Crop of the image resized to ``resized``, at ``corner``, without computing the rest.

    Pillow stores the box in single precision and picks the cheaper order of the two passes, so values may differ from
    resizing and then cropping. Exact callers use this only for images that would become too large; all others stay
    bit-identical to CLIP's own transform.
    """
    (left, top), (x, y) = corner, (image.width / resized[0], image.height / resized[1])
    box = (left * x, top * y, min((left + side) * x, image.width), min((top + side) * y, image.height))
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)


def _resized(size: tuple[int, int], side: int, fit: str) -> tuple[int, int]:
    """Width and height of an image before it is cropped or padded to the square."""
    if fit == "squash":
        return side, side
    factor = side / (min(size) if fit == "crop" else max(size))
    # int, because torchvision's Resize truncates the longer side.
    width, height = (max(1, int(n * factor + 1e-6)) for n in size)
    return width, height


def square_scale(size: tuple[int, int], side: int, fit: str = "crop") -> tuple[float, float]:
    """Pixels of the square per pixel of the image, in x and in y (see :func:`fit_square`).

    Args:
        size: width and height of the image.
        side: side of the square.
        fit: see :data:`FITS`.
    """
    width, height = _resized(size, side, check_choice("fit", fit, FITS))
    return width / size[0], height / size[1]


def square_boxes(boxes: np.ndarray, size: tuple[int, int], side: int, fit: str = "crop") -> np.ndarray:
    """Map boxes of an image to the square that :func:`fit_square` makes of it.

    Args:
        boxes: ``[R, 4]`` xyxy pixels of the image.
        size: width and height of the image.
        side: side of the square.
        fit: see :data:`FITS`.

    Returns:
        ``[R, 4]`` xyxy, clipped to the square; a box outside it has no area.
    """
    scale = np.array(square_scale(size, side, fit))
    shift = np.round((np.array(size) * scale - side) / 2) if fit == "crop" else np.zeros(2)
    corners = np.asarray(boxes, dtype=float).reshape(-1, 2, 2) * scale - shift
    return corners.clip(0, side).reshape(-1, 4)


class SquareImages(Dataset):
    """Dataset of images resized to the square input of a tower."""

    def __init__(self, openers: Sequence[Callable[[], Image.Image]], side: int, fit: str = "crop") -> None:
        """Initialise the dataset.

        Args:
            openers: one function per image that returns it as RGB.
            side: side of the squares.
            fit: see :func:`fit_square`.
        """
        self.openers, self.side, self.fit = openers, side, check_choice("fit", fit, FITS)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.openers)

    def __getitem__(self, n: int) -> Tensor:
        """``[3, side, side]`` uint8."""
        return pixels(fit_square(self.openers[n](), self.side, self.fit))

    def batches(self, batch_size: int, workers: int = 0) -> Iterator[Tensor]:
        """Yield ``[B, 3, side, side]`` uint8; an unreadable image raises its own :class:`UserError`."""
        for batch in DataLoader(_CatchErrors(self), batch_size, num_workers=workers, collate_fn=_stacked):
            if isinstance(batch, UserError):
                raise batch
            yield batch


class _CatchErrors(Dataset):
    """Returns a UserError as an item: raised in a worker, it would arrive as the text of a traceback."""

    def __init__(self, source: SquareImages) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, n: int) -> Tensor | UserError:
        try:
            return self.source[n]
        except UserError as error:
            return error


def _stacked(items: Sequence[Tensor | UserError]) -> Tensor | UserError:
    errors = [i for i in items if isinstance(i, UserError)]
    return errors[0] if errors else torch.stack([i for i in items if isinstance(i, Tensor)])


def pixels(image: Image.Image) -> Tensor:
    """``[3, H, W]`` uint8 of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
