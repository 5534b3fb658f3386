"""What predictors take: images in every usual form, texts, limits; and the image that queries are about."""

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
#: Called with a picture that cannot be read, and why.
OnBad = Callable[["Picture", UserError], None]

#: By their endings.
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".3gp", ".ts")
_ARRAY = "An image array must be [H, W, 3] uint8 RGB"
_FORMS = "a path, an address (https://...), a PIL image, a [H, W, 3] uint8 array or a [3, H, W] tensor"


class HeldImage(Generic[Encoded]):
    """The image that a thread set last. Threads that share a predictor do not see each other's image."""

    def __init__(self) -> None:
        self._local = threading.local()

    def set(self, image: Encoded | None) -> None:
        """Hold an image; None holds none."""
        self._local.image = image

    def get(self, given: Encoded | None = None) -> Encoded:
        """The image given, or the one held.

        Raises:
            UserError: when this thread holds none.
        """
        image = given if given is not None else getattr(self._local, "image", None)
        if image is None:
            raise UserError(
                "No image is set. Call set_image(image) before detect, ground or explain, in the same thread; or give "
                "image=encode_image(...)."
            )
        return image


@dataclass(frozen=True, eq=False)
class Picture:
    """One image, wherever it is; read when its pixels are asked for, and not kept.

    Attributes:
        source: path, address, PIL image, array or tensor.
        name: what it is called in messages and answers.
    """

    source: Any = field(repr=False)
    name: str = ""

    def pixels(self) -> np.ndarray:
        """``[H, W, 3]`` uint8 RGB, turned by the EXIF orientation.

        Raises:
            UserError: for what cannot be read.
        """
        if is_address(self.source):
            return np.asarray(decode_rgb(self._body, self.name))
        return _pixels_of(self.source)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as shown; of a file, from its head."""
        if isinstance(self.source, str | Path) and not is_address(self.source):
            return picture_size(self.source)
        height, width = self.pixels().shape[:2]
        return width, height

    @cached_property
    def _body(self) -> bytes:
        """What an address gave, which is asked once."""
        body = fetch(self.source)
        if body.lstrip()[:1] == b"<" and b"<svg" not in body[:2000]:
            raise UserError(f"{self.source} is a page and no picture. Give the address of the picture itself.")
        return body


def as_picture(image: ImageLike, name: str = "") -> Picture:
    """One image as a :class:`Picture`; nothing is read.

    Args:
        image: path, address of http or https, PIL image, ``[H, W, 3]`` uint8 array, or tensor: ``[3, H, W]`` or
            ``[H, W, 3]``, uint8 or floating point in [0, 1].
        name: default: the path or address, or ``image``.

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
        f"An image is {_FORMS}; given {type(image).__name__}. Bytes become "
        "one by PIL.Image.open(io.BytesIO(...)); detect_images takes several."
    )


def is_image(value: Any) -> bool:
    """Whether a value is one of the forms of an image; nothing is read."""
    return isinstance(value, str | Path | Image.Image | np.ndarray | Picture) or _is_tensor(value)


def load_image(image: ImageLike) -> np.ndarray:
    """``[H, W, 3]`` uint8 RGB of anything that :func:`as_picture` takes.

    Raises:
        UserError: for a missing or unreadable file or address, an array of another shape or type, and anything else.
    """
    return as_picture(image).pixels()


def _pixels_of(image: Any) -> np.ndarray:
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise UserError(f"{_ARRAY}; given {list(image.shape)} {image.dtype}.")
        return image
    if isinstance(image, Image.Image):
        if not image.width or not image.height:
            raise UserError(f"The image has no pixels: {image.width} x {image.height}.")
        return np.asarray(as_rgb(image))
    if _is_tensor(image):
        return _of_tensor(image)
    if Path(image).is_dir():
        raise UserError(f"{image} is a folder, and one image is needed. detect_images takes folders.")
    if is_video(image):
        raise UserError(f"{image} is a video, and one image is needed. detect_images takes videos.")
    return np.asarray(open_rgb(image))


def _is_tensor(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")


def _of_tensor(tensor: Any) -> np.ndarray:
    """Channels first, as torch has them, unless only the last axis can be that of colours."""
    array = tensor.detach().cpu()
    if array.ndim != 3 or 3 not in (array.shape[0], array.shape[2]) or not array.numel():
        raise UserError(f"An image tensor must be [3, H, W] RGB; given {list(array.shape)}.")
    if array.shape[0] == 3:
        array = array.permute(1, 2, 0)
    if array.is_floating_point():
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise UserError(
                f"A floating point image tensor holds colours in 0..1; given {low:g}..{high:g}. Undo what normalised "
                "it, or give it as uint8."
            )
        return np.ascontiguousarray((array.float() * 255).round().byte().numpy())
    if str(array.dtype) != "torch.uint8":
        raise UserError(f"An image tensor is uint8, or floating point in 0..1; given {array.dtype}.")
    return np.ascontiguousarray(array.numpy())


def is_video(path: object) -> bool:
    """Whether a path is that of a video, by its ending."""
    return isinstance(path, str | Path) and str(path).lower().endswith(VIDEO_SUFFIXES)


def read_images(
    images: ImageLike | Iterable[ImageLike], *, every: int = 1, on_bad: OnBad | None = None
) -> Iterator[tuple[Picture, np.ndarray]]:
    """Every image of what is given, one after the other, with its pixels; no more than one is held.

    Args:
        images: an image as :func:`as_picture` takes it, a folder (its pictures in name order), a pattern
            (``photos/*.jpg``, ``**`` for folders in folders), a video file, a ``[B, H, W, 3]`` array or
            ``[B, 3, H, W]`` tensor, or a list or generator of these.
        every: of a video, the first of so many frames.
        on_bad: called for a picture that cannot be read, which is then passed over; None: it is an error.

    Raises:
        UserError: for a path or pattern without a picture; without ``on_bad``, for the first bad picture.
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
    """Single images and videos, in order."""
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
            f"Images are {_FORMS}, a folder, a pattern, a video, or a list of these; given {type(images).__name__}."
        )


def _of_path(path: str | Path) -> Iterator[Any]:
    if Path(path).is_dir():
        found, told = find_images([Path(path)])
        for line in told:
            note(line)
        yield from found
    elif glob.has_magic(str(path)) and not Path(path).exists():
        yield from matching(str(path))
    else:
        yield path


def matching(pattern: str) -> list[Path]:
    """Pictures and videos that a pattern matches, in name order; what else it matches is told.

    Raises:
        UserError: where it matches none.
    """
    found = sorted(Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file())
    endings = image_endings()
    good = [p for p in found if p.suffix.lower() in endings or is_video(p)]
    if not good:
        raise UserError(f"No picture matches {pattern}" + (f" ({len(found)} other files do)." if found else "."))
    if len(found) > len(good):
        note(f"{pattern}: left out, as no pictures by their endings: {len(found) - len(good)} files.")
    return good


def find_images(paths: Sequence[Path], *, recursive: bool = False) -> tuple[list[Path], list[str]]:
    """Files as given, and the images of folders in name order.

    Args:
        paths: files and folders.
        recursive: search folders in folders, too.

    Returns:
        The images, and what was passed over in folders, in words.

    Raises:
        UserError: for a path that is not there, or a folder without an image.
    """
    endings = image_endings()
    out: list[Path] = []
    told: list[str] = []
    for path in paths:
        if path.is_file():
            out.append(path)
            continue
        if not path.is_dir():
            near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else []
            raise UserError(f"No image or folder at {path}." + (f" Nearest: {', '.join(near)}." if near else ""))
        inside = sorted(path.rglob("*") if recursive else path.iterdir())
        # macOS keeps a file's second part beside it on foreign disks: "._a.jpg" is no picture.
        forks = [p.name for p in inside if p.name.startswith("._")]
        files = [p for p in inside if p.is_file() and not p.name.startswith("._")]
        hidden = {p for p in files if recursive and is_debris(p.relative_to(path))}
        files = [p for p in files if p not in hidden]
        found = [p for p in files if p.suffix.lower() in endings]
        others = Counter(p.suffix.lower() or p.name for p in files if p.suffix.lower() not in endings)
        folders = sum(p.is_dir() and (not recursive or p.is_symlink()) for p in inside)
        if forks:
            told.append(f"{path}: left out, as no pictures but macOS's second parts of files: {', '.join(forks)}.")
        if hidden:
            told.append(f"{path}: left out, as hidden: {len(hidden)} files.")
        if others:
            told.append(
                f"{path}: left out, as no pictures by their endings: "
                + ", ".join(f"{n} of {e}" for e, n in others.items())
                + "."
            )
        if folders:
            told.append(f"{path}: {folders} {'links to ' if recursive else ''}folders inside were not searched.")
        if not found:
            raise UserError(" ".join([f"No images in {path}.", *told]))
        out += found
    return out, told


def image_endings() -> set[str]:
    """Of the files that Pillow opens."""
    Image.init()
    return {e for e, kind in Image.registered_extensions().items() if kind in Image.OPEN} - set(VIDEO_SUFFIXES)


def check_texts(texts: str | Sequence[str], what: str) -> list[str]:
    """Texts as a list.

    Raises:
        UserError: for none, and for what is no text or blank.
    """
    found = [texts] if isinstance(texts, str) else list(texts) if isinstance(texts, Sequence) else [texts]
    if not found:
        raise UserError(f"No {what} is given.")
    for text in found:
        if not isinstance(text, str):
            raise UserError(f"The {what} must be a text; given {type(text).__name__} {str(text)[:40]!r}.")
        if not text.strip():
            raise UserError(f"The {what} is empty.")
    return found


def check_count(name: str, value: Any) -> int:
    """A limit of at least one.

    Raises:
        UserError: for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise UserError(f"{name} must be a whole number of at least 1; given {value!r}.")
    return int(value)


def check_threshold(value: Any, name: str = "threshold") -> float:
    """A lowest score, or another share, between 0 and 1.

    Raises:
        UserError: for anything else.
    """
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= 1:
        what = " is the lowest score that is kept," if name == "threshold" else " is"
        raise UserError(f"{name}{what} between 0 and 1; given {value!r}.")
    return float(value)
