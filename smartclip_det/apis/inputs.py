"""What predictors take: images in every usual form, texts, limits; and the image that queries are about."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.utils.images import as_rgb, open_rgb

ImageLike = str | Path | Image.Image | np.ndarray
Encoded = TypeVar("Encoded")


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


def load_image(image: ImageLike) -> np.ndarray:
    """``[H, W, 3]`` uint8 RGB of a path, PIL image (its EXIF orientation is applied) or array.

    Raises:
        UserError: for a missing or unreadable file, an array of another shape or type, and anything else.
    """
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise UserError(f"An image array must be [H, W, 3] uint8 RGB; given {list(image.shape)} {image.dtype}.")
        return image
    if isinstance(image, Image.Image):
        if not image.width or not image.height:
            raise UserError(f"The image has no pixels: {image.width} x {image.height}.")
        return np.asarray(as_rgb(image))
    if not isinstance(image, str | Path):
        raise UserError(
            f"An image is a path, a PIL image or a [H, W, 3] uint8 array; given {type(image).__name__}. Bytes become "
            "one by PIL.Image.open(io.BytesIO(...)); detect_images takes several."
        )
    return np.asarray(open_rgb(image))


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


def check_threshold(value: Any) -> float:
    """A lowest score between 0 and 1.

    Raises:
        UserError: for anything else.
    """
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= 1:
        raise UserError(f"threshold is the lowest score that is kept, between 0 and 1; given {value!r}.")
    return float(value)
