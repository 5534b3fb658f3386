"""Image side of the predictor: images are read, checked, encoded once, and kept per thread for queries.

Shape letters: N images, R regions, D joint embedding, H W image pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from smartclip_det.apis.families.base import Family
from smartclip_det.apis.inputs import CurrentImage, ImageLike, as_picture, check_count
from smartclip_det.apis.inputs import Picture as GivenPicture
from smartclip_det.core.errors import UserError
from smartclip_det.models.boxes import Photograph, checked_boxes


class EncodesImages:
    """Mixin of :class:`Predictor` with the methods that take images."""

    family: Family
    _current: CurrentImage[list[Any]]

    def set_image(self, image: ImageLike, *, boxes: Any = None) -> Any:
        """Encode an image and keep it for this thread's queries; a call that fails clears the current image.

        Args:
            image: path, PIL image (its EXIF orientation is applied) or ``[H, W, 3]`` uint8 RGB array.
            boxes: ``[R, 4]`` xyxy pixels to score unchanged, instead of the predictor's own boxes; R may be 0.

        Raises:
            UserError: for a missing or unreadable file, an array of the wrong shape, and boxes outside the image.
        """
        return self.set_images([image], boxes=None if boxes is None else [boxes])[0]

    def set_images(
        self, images: Sequence[ImageLike], *, boxes: Sequence[Any] | None = None, batch_size: int = 8
    ) -> list[Any]:
        """Encode images and keep them for :meth:`detect_images` and queries with ``image=``; see :meth:`set_image`.

        Args:
            images: list of images.
            boxes: boxes of each image, or None.
            batch_size: maximum number of images per forward pass.

        Returns:
            The encoded images.
        """
        self._current.set(None)
        encoded = self.encode_images(images, boxes=boxes, batch_size=batch_size)
        self._current.set(encoded)
        return encoded

    def encode_image(self, image: ImageLike | Photograph, *, boxes: Any = None) -> Any:
        """Encode an image without keeping it; the encoding does not depend on texts."""
        return self.encode_images([image], boxes=None if boxes is None else [boxes])[0]

    @torch.no_grad()
    def encode_images(
        self, images: Sequence[ImageLike | Photograph], *, boxes: Sequence[Any] | None = None, batch_size: int = 8
    ) -> list[Any]:
        """Encode images; arguments as in :meth:`set_images`. Results do not depend on the batch composition."""
        check_count("batch_size", batch_size)
        if boxes is not None and len(boxes) != len(images):
            raise UserError(f"boxes must have one entry per image; got {len(boxes)} for {len(images)} images.")
        pictures = [picture_of(i) for i in images]
        given = [
            None if b is None else checked_boxes(b, p.image.size)
            for b, p in zip(boxes or [None] * len(pictures), pictures, strict=True)
        ]
        return self.family.encode(pictures, given, batch_size)

    def _image(self, given: Any) -> Any:
        """Return the given image, or the current one."""
        current = self._current.get(None if given is None else [given])
        if len(current) != 1:
            raise UserError(
                f"{len(current)} images are set. Pass image=ONE of the values returned by set_images, or call "
                "detect_images() to query all of them."
            )
        return current[0]

    @torch.no_grad()
    def picture_vectors(self, pictures: Sequence[tuple[ImageLike, Sequence[float]]]) -> tuple[Tensor, Tensor]:
        """Return ``[N, D]`` vectors of boxes and ``[N, D]`` of their whole images, for :meth:`TextBank.with_images`."""
        vectors = []
        for picture in pictures:
            if not isinstance(picture, tuple | list) or len(picture) != 2:
                raise UserError("Images must be pairs of an image and a box: [(image, [x1, y1, x2, y2]), ...].")
            taken = picture_of(picture[0])
            width, height = taken.image.size
            box = checked_boxes([picture[1]], (width, height), "The example's box")
            if (box[:, 2:] - box[:, :2] < 1).any():
                raise UserError(
                    f"The example's box {list(picture[1])} is empty: it must be at least 1 pixel wide and high."
                )
            both = torch.cat([box, box.new_tensor([[0, 0, width, height]])])
            (encoded,) = self.family.encode([taken], [both], 1)
            vectors.append(self.family.embed(encoded)[1].float())
        stacked = torch.stack(vectors)
        return stacked[:, 0], stacked[:, 1]


def picture_of(image: ImageLike | Photograph) -> Photograph:
    """Wrap an image; the name is that of its file if it has one."""
    if isinstance(image, Photograph):
        return image
    given = as_picture(image)
    return photograph(given, given.pixels())


def photograph(given: GivenPicture, pixels: np.ndarray) -> Photograph:
    """Wrap pixels that were read from ``given``; the name is that of its file if it has one."""
    inside = str(getattr(given.source, "filename", "") or "")
    name = inside or ("" if given.name == "image" else given.name)
    # Files are reopened when drawn; pixels given as arrays are in memory anyway.
    return Photograph(Image.fromarray(pixels), name, given)
