"""Reading images, and making the squares that a tower is trained on."""

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

#: CLIP's mean colour, which becomes (almost) zero when pixels are normalised.
MEAN_COLOUR = (123, 117, 104)
#: By how much decoding may reduce an image: pixels that must be left on each side, for each that is needed. The more is
#: left out, the less what is left resembles a careful resize. See :func:`read_square`.
REDUCED_MARGINS = {8: 3, 4: 3, 2: 1}
#: Levels of 255 that its pixels are off by on average, at most: over photographs, and in any one of them.
REDUCED_DISTANCE = (1.0, 4.0)
#: Sides of the square that the longer side may take before it is cut: an image of 1 x 60,000 pixels would take some GB.
_LONGEST = 16


def open_rgb(path: str | Path) -> Image.Image:
    """The RGB image of a file (see :func:`as_rgb`); a missing or broken file is a :class:`UserError`."""
    return _decoded(_existing(path), str(path), as_rgb)


def decode_rgb(content: bytes, name: str) -> Image.Image:
    """The RGB image of a file's bytes; ``name`` is for messages."""
    return _decoded(io.BytesIO(content), name, as_rgb)


def read_square(source: str | Path | bytes, name: str, side: int, fit: str = "crop", *, exact: bool) -> Image.Image:
    """The square of a file or its bytes, as :func:`fit_square` of the whole image.

    Args:
        source: a file, or its content.
        name: for messages.
        side: of the square.
        fit: see :data:`FITS`.
        exact: decode the whole image. Otherwise JPEG files are decoded at a half, quarter or eighth where that leaves
            :data:`REDUCED_MARGINS` times the pixels that are needed on each side, and nothing outside of the square
            is resized, which changes photographs by :data:`REDUCED_DISTANCE` at most. For training only.
    """

    def square(opened: Image.Image) -> Image.Image:
        size = opened.size
        if not exact:
            wanted = _resized(size, side, fit)
            part = next(
                (
                    k
                    for k, margin in REDUCED_MARGINS.items()
                    if all(n >= k * margin * w for n, w in zip(size, wanted, strict=True))
                ),
                1,
            )
            if part > 1:
                opened.draft(None, (size[0] // part, size[1] // part))
        turned = opened.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        # A reduced size is rounded up; the square is laid out by the true one.
        return fit_square(as_rgb(opened), side, fit, size[::-1] if turned else size, whole=exact)

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
        # Decoders of broken files raise whatever comes their way: struct.error, EOFError, IndexError, zlib.error ...
        raise UserError(f"The image {name} cannot be read ({str(error) or type(error).__name__}).") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, turned by its EXIF orientation, as MMDetection's reader gives it.

    Grey values of 16 bits keep their upper eight, where Pillow alone would cut them all to white. Transparency is
    dropped, as CLIP's transform drops it.

    Raises:
        UserError: for pixels without an agreed meaning as colours (floating point in 0..1, beyond 16 bits).
    """
    turned = ImageOps.exif_transpose(image)
    if turned.mode == "F" or turned.mode.startswith("I"):
        turned = _eight_bits(turned)
    if turned.mode == "P" and "transparency" in turned.info:
        # The same colours, without Pillow's warning about palettes.
        turned = turned.convert("RGBA")
    try:
        return turned.convert("RGB")
    except ValueError as error:
        raise UserError(f"pixels of mode {turned.mode} have no RGB form here ({error}); save it as RGB") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits as 8 bits."""
    values: np.ndarray = np.asarray(image, dtype=np.float64 if image.mode == "F" else np.int64)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F" and not (low >= 0 and 1 < high <= 255):
        raise UserError(f"floating point pixels in {low:g}..{high:g} have no agreed range; save it with 8 bits")
    if low < 0 or high > 65535:
        raise UserError(f"grey values in {low:g}..{high:g} are beyond 16 bits; save it with 8 bits")
    # Of 32 bits, values that fit into 8 are meant so.
    eight = image.mode == "F" or (image.mode == "I" and high <= 255)
    return Image.fromarray((values if eight else values >> 8).astype(np.uint8))


def fit_square(
    image: Image.Image, side: int, fit: str = "crop", size: tuple[int, int] | None = None, *, whole: bool = True
) -> Image.Image:
    """An RGB image as a ``side`` x ``side`` square, bicubic; see :data:`FITS`.

    Args:
        image: RGB.
        side: of the square.
        fit: see :data:`FITS`.
        size: width and height that the square is laid out by, where ``image`` is a reduced form of the image.
        whole: resize all of the image before it is cut, as CLIP's own transform does.
    """
    check_choice("fit", fit, FITS)
    width, height = _resized(size or image.size, side, fit)
    if fit == "crop":
        left, top = round((width - side) / 2), round((height - side) / 2)
        if not whole or max(width, height) > _LONGEST * side:
            return _resize_part(image, (width, height), (left, top), side)
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        return resized.crop((left, top, left + side, top + side))
    if fit == "squash":
        if image.height > _LONGEST * max(side, image.width):
            # Pillow resizes the width first, of all rows.
            image = image.resize((image.width, side), Image.Resampling.BICUBIC)
        return image.resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side, side), MEAN_COLOUR)
    square.paste(image.resize((width, height), Image.Resampling.BICUBIC), (0, 0))
    return square


def _resize_part(image: Image.Image, whole: tuple[int, int], corner: tuple[int, int], side: int) -> Image.Image:
    """The square at ``corner`` of the image resized to ``whole``, without making the rest of it.

    Pillow holds the box in single precision and takes the cheaper of two orders, so that values may differ from those
    of resizing and cropping: only images that would grow beyond measure are cut so, others stay equal to CLIP's own
    transform bit by bit.
    """
    (left, top), (x, y) = corner, (image.width / whole[0], image.height / whole[1])
    box = (left * x, top * y, min((left + side) * x, image.width), min((top + side) * y, image.height))
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)


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

    def batches(self, batch_size: int, workers: int = 0) -> Iterator[Tensor]:
        """``[B, 3, side, side]`` uint8 each; an image that cannot be read is its own :class:`UserError`."""
        for batch in DataLoader(_Told(self), batch_size, num_workers=workers, collate_fn=_stacked):
            if isinstance(batch, UserError):
                raise batch
            yield batch


class _Told(Dataset):
    """Items, or the error of one: an error that is raised in a worker arrives as the text of a traceback."""

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
