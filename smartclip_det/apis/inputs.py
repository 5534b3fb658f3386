"""Inputs of predictors: images in all common forms, texts and limits; and the current image of a thread."""

from __future__ import annotations

import glob
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Union

import numpy as np
from PIL import Image

from smartclip_det.apis.fetching import fetch, is_address
from smartclip_det.core.errors import UserError, nearest
from smartclip_det.formats.pictures import picture_size
from smartclip_det.utils.files import is_debris
from smartclip_det.utils.images import as_rgb, decode_rgb, open_rgb
from smartclip_det.utils.notes import note

if TYPE_CHECKING:
    from torch import Tensor

ImageLike = Union[str, Path, Image.Image, np.ndarray, "Tensor", "Picture"]
Encoded = TypeVar("Encoded")
#: Callback for an image that cannot be read, with the error.
OnBad = Callable[["Picture", UserError], None]

#: File suffixes of videos.
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".3gp", ".ts")
_ARRAY = "An image array must be [H, W, 3] uint8 RGB"
_FORMS = "a path, a URL (https://...), a PIL image, a [H, W, 3] uint8 array or a [3, H, W] tensor"


class CurrentImage(Generic[Encoded]):
    """The image that a thread set last. Threads that share a predictor do not see each other's image."""

    def __init__(self) -> None:
        self._local = threading.local()

    def set(self, image: Encoded | None) -> None:
        """Set the image; None clears it."""
        self._local.image = image

    def get(self, given: Encoded | None = None) -> Encoded:
        """Return the given image, or this thread's current one.

        Raises:
            UserError: if this thread has not set one.
        """
        image = given if given is not None else getattr(self._local, "image", None)
        if image is None:
            raise UserError(
                "No image is set. Call set_image(image) before detect, ground or explain, in the same thread, or pass "
                "image=encode_image(...)."
            )
        return image


@dataclass(frozen=True, eq=False)
class Picture:
    """One image from any source; pixels are read on demand and not cached.

    Attributes:
        source: path, URL, PIL image, array or tensor.
        name: name in messages and outputs.
    """

    source: Any = field(repr=False)
    name: str = ""

    def pixels(self) -> np.ndarray:
        """Read ``[H, W, 3]`` uint8 RGB, with the EXIF orientation applied.

        Raises:
            UserError: if the image cannot be read.
        """
        if is_address(self.source):
            return np.asarray(decode_rgb(self._body, self.name))
        return _pixels_of(self.source)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) after EXIF rotation; read from the header for files."""
        if isinstance(self.source, str | Path) and not is_address(self.source):
            return picture_size(self.source)
        height, width = self.pixels().shape[:2]
        return width, height

    @cached_property
    def _body(self) -> bytes:
        """The downloaded bytes; a URL is requested once."""
        body = fetch(self.source)
        if body.lstrip()[:1] == b"<" and b"<svg" not in body[:2000]:
            raise UserError(f"{self.source} is a web page, not an image. Pass the URL of the image itself.")
        return body


def as_picture(image: ImageLike, name: str = "") -> Picture:
    """Wrap one image as a :class:`Picture`; nothing is read.

    Args:
        image: path, http or https URL, PIL image, ``[H, W, 3]`` uint8 array, or tensor: ``[3, H, W]`` or
            ``[H, W, 3]``, uint8 or floating point in [0, 1].
        name: default: the path or URL, or ``image``.

    Raises:
        UserError: for anything else.
    """
    if isinstance(image, Picture):
        return image
    if isinstance(image, str | Path):
        return Picture(image, name or str(image))
    if isinstance(image, Image.Image | np.ndarray) or _is_tensor(image):
        return Picture(image, name or "image")
    raise UserError(
        f"An image must be {_FORMS}; got {type(image).__name__}. Open bytes "
        "with PIL.Image.open(io.BytesIO(...)); for several images use detect_images."
    )


def is_image(value: Any) -> bool:
    """Whether a value is an accepted form of an image; nothing is read."""
    return isinstance(value, str | Path | Image.Image | np.ndarray | Picture) or _is_tensor(value)


def load_image(image: ImageLike) -> np.ndarray:
    """Read ``[H, W, 3]`` uint8 RGB of anything that :func:`as_picture` accepts.

    Raises:
        UserError: for a missing or unreadable file or URL, an array of the wrong shape or type, and anything else.
    """
    return as_picture(image).pixels()


def _pixels_of(image: Any) -> np.ndarray:
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise UserError(f"{_ARRAY}; got {list(image.shape)} {image.dtype}.")
        return image
    if isinstance(image, Image.Image):
        if not image.width or not image.height:
            raise UserError(f"The image has no pixels: {image.width} x {image.height}.")
        return np.asarray(as_rgb(image))
    if _is_tensor(image):
        return _of_tensor(image)
    if Path(image).is_dir():
        raise UserError(f"{image} is a folder; expected one image. Use detect_images for folders.")
    if is_video(image):
        raise UserError(f"{image} is a video; expected one image. Use detect_images for videos.")
    return np.asarray(open_rgb(image))


def _is_tensor(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")


def _of_tensor(tensor: Any) -> np.ndarray:
    """Convert a tensor: channels first, unless only the last axis has size 3."""
    array = tensor.detach().cpu()
    if array.ndim != 3 or 3 not in (array.shape[0], array.shape[2]) or not array.numel():
        raise UserError(f"An image tensor must be [3, H, W] RGB; got {list(array.shape)}.")
    if array.shape[0] == 3:
        array = array.permute(1, 2, 0)
    if array.is_floating_point():
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise UserError(
                f"A floating-point image tensor must be in 0..1; got {low:g}..{high:g}. Undo the normalisation, "
                "or pass uint8."
            )
        return np.ascontiguousarray((array.float() * 255).round().byte().numpy())
    if str(array.dtype) != "torch.uint8":
        raise UserError(f"An image tensor must be uint8, or floating point in 0..1; got {array.dtype}.")
    return np.ascontiguousarray(array.numpy())


def is_video(path: object) -> bool:
    """Whether a path is a video, by its suffix."""
    return isinstance(path, str | Path) and str(path).lower().endswith(VIDEO_SUFFIXES)


def read_images(
    images: ImageLike | Iterable[ImageLike], *, every: int = 1, on_bad: OnBad | None = None
) -> Iterator[tuple[Picture, np.ndarray]]:
    """Iterate over all images of the input with their pixels; only one is in memory at a time.

    Args:
        images: an image as in :func:`as_picture`, a folder (images in name order), a pattern
            (``photos/*.jpg``, ``**`` for subfolders), a video file, a ``[B, H, W, 3]`` array or
            ``[B, 3, H, W]`` tensor, or a list or generator of these.
        every: for videos, take one of every N frames.
        on_bad: called for an unreadable image, which is then skipped; None: raise.

    Raises:
        UserError: for a path or pattern without images; without ``on_bad``, for the first unreadable image.
    """
    check_count("every", every)
    for item in _flat(images):
        if is_video(item) and not is_address(item):
            from smartclip_det.apis.video import read_frames

            try:
                yield from read_frames(item, every=every)
            except UserError as error:
                if on_bad is None:
                    raise
                on_bad(Picture(item, str(item)), error)
            continue
        picture = as_picture(item)
        try:
            pixels = picture.pixels()
        except UserError as error:
            if on_bad is None:
                raise
            on_bad(picture, error)
            continue
        yield picture, pixels


def _flat(images: Any) -> Iterator[Any]:
    """Yield single images and videos, in order."""
    if isinstance(images, str | Path) and not is_address(images):
        yield from _of_path(images)
    elif (isinstance(images, np.ndarray) or _is_tensor(images)) and images.ndim == 4:
        yield from (Picture(image, f"image {n}") for n, image in enumerate(images))
    elif is_image(images):
        yield images
    elif isinstance(images, Iterable) and not isinstance(images, bytes | bytearray | dict):
        for image in images:
            yield from _flat(image)
    else:
        raise UserError(
            f"Images must be {_FORMS}, a folder, a pattern, a video, or a list of these; got {type(images).__name__}."
        )


def _of_path(path: str | Path) -> Iterator[Any]:
    if Path(path).is_dir():
        paths, notes = find_images([Path(path)])
        for line in notes:
            note(line)
        yield from paths
    elif glob.has_magic(str(path)) and not Path(path).exists():
        yield from matching(str(path))
    else:
        yield path


def matching(pattern: str) -> list[Path]:
    """Return the images and videos that a pattern matches, in name order; other matches are counted in a note.

    Raises:
        UserError: if there are none.
    """
    matches = sorted(Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file())
    suffixes = image_suffixes()
    good = [p for p in matches if p.suffix.lower() in suffixes or is_video(p)]
    if not good:
        raise UserError(f"No image matches {pattern}" + (f" ({len(matches)} other files do)." if matches else "."))
    if len(matches) > len(good):
        note(f"{pattern}: skipped {len(matches) - len(good)} files without an image or video suffix.")
    return good


def find_images(paths: Sequence[Path], *, recursive: bool = False) -> tuple[list[Path], list[str]]:
    """List image files: files as given, and the images of folders in name order.

    Args:
        paths: files and folders.
        recursive: also search subfolders.

    Returns:
        The images, and notes on files that were skipped in folders.

    Raises:
        UserError: for a missing path, or a folder without images.
    """
    suffixes = image_suffixes()
    out: list[Path] = []
    notes: list[str] = []
    for path in paths:
        if path.is_file():
            out.append(path)
            continue
        if not path.is_dir():
            near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else []
            raise UserError(f"{path} does not exist." + (f" Nearest: {', '.join(near)}." if near else ""))
        inside = sorted(path.rglob("*") if recursive else path.iterdir())
        # macOS writes resource forks next to files on foreign file systems: "._a.jpg" is not an image.
        forks = [p.name for p in inside if p.name.startswith("._")]
        files = [p for p in inside if p.is_file() and not p.name.startswith("._")]
        hidden = {p for p in files if recursive and is_debris(p.relative_to(path))}
        files = [p for p in files if p not in hidden]
        images = [p for p in files if p.suffix.lower() in suffixes]
        others = Counter(p.suffix.lower() or p.name for p in files if p.suffix.lower() not in suffixes)
        folders = sum(p.is_dir() and (not recursive or p.is_symlink()) for p in inside)
        if forks:
            notes.append(f"{path}: skipped macOS resource forks: {', '.join(forks)}.")
        if hidden:
            notes.append(f"{path}: skipped {len(hidden)} hidden files.")
        if others:
            notes.append(
                f"{path}: skipped files without an image suffix: "
                + ", ".join(f"{n} {e}" for e, n in others.items())
                + "."
            )
        if folders:
            notes.append(f"{path}: {folders} {'links to ' if recursive else ''}subfolders were not searched.")
        if not images:
            raise UserError(" ".join([f"No images in {path}.", *notes]))
        out += images
    return out, notes


def image_suffixes() -> set[str]:
    """Return the suffixes of files that Pillow can open."""
    Image.init()
    return {e for e, kind in Image.registered_extensions().items() if kind in Image.OPEN} - set(VIDEO_SUFFIXES)


def check_texts(texts: str | Sequence[str], what: str) -> list[str]:
    """Return texts as a list.

    Raises:
        UserError: for an empty list, and for entries that are blank or not strings.
    """
    checked = [texts] if isinstance(texts, str) else list(texts) if isinstance(texts, Sequence) else [texts]
    if not checked:
        raise UserError(f"No {what} given.")
    for text in checked:
        if not isinstance(text, str):
            raise UserError(f"The {what} must be a string; got {type(text).__name__} {str(text)[:40]!r}.")
        if not text.strip():
            raise UserError(f"The {what} is empty.")
    return checked


def check_count(name: str, value: Any) -> int:
    """Check an integer of at least one.

    Raises:
        UserError: for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise UserError(f"{name} must be an integer of at least 1; got {value!r}.")
    return int(value)


def check_threshold(value: Any, name: str = "threshold") -> float:
    """Check a score threshold, or another fraction, in [0, 1].

    Raises:
        UserError: for anything else.
    """
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= 1:
        raise UserError(f"{name} must be between 0 and 1; got {value!r}.")
    return float(value)
