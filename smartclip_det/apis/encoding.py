"""Images that a predictor is asked about: read, checked, encoded once, and held for the queries of a thread.

Shape letters: N pictures, R regions, D joint embedding, H W image pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from smartclip_det.apis.families.base import Family
from smartclip_det.apis.inputs import HeldImage, ImageLike, as_picture, check_count
from smartclip_det.apis.inputs import Picture as GivenPicture
from smartclip_det.core.errors import UserError
from smartclip_det.models.boxes import Photograph, checked_boxes


class EncodesImages:
    """The part of :class:`Predictor` that takes images."""

    family: Family
    _held: HeldImage[list[Any]]

    def set_image(self, image: ImageLike, *, boxes: Any = None) -> Any:
        """Encode an image and hold it for the queries of this thread; a call that fails leaves none.

        Args:
            image: path, PIL image (its EXIF orientation is applied) or ``[H, W, 3]`` uint8 RGB array.
            boxes: ``[R, 4]`` xyxy pixels that are scored as they are, in place of the predictor's own; R may be 0.

        Raises:
            UserError: for a missing or unreadable file, an array of another shape, and boxes that are not this image's.
        """
        return self.set_images([image], boxes=None if boxes is None else [boxes])[0]

    def set_images(
        self, images: Sequence[ImageLike], *, boxes: Sequence[Any] | None = None, batch_size: int = 8
    ) -> list[Any]:
        """Encode images and hold them for :meth:`detect_images` and queries with ``image=``; see :meth:`set_image`.

        Args:
            images: a list of them.
            boxes: for each its boxes, or None.
            batch_size: images in one forward pass at most.

        Returns:
            What each was encoded to.
        """
        self._held.set(None)
        encoded = self.encode_images(images, boxes=boxes, batch_size=batch_size)
        self._held.set(encoded)
        return encoded

    def encode_image(self, image: ImageLike | Photograph, *, boxes: Any = None) -> Any:
        """Encode an image, without holding it; nothing of it depends on texts."""
        return self.encode_images([image], boxes=None if boxes is None else [boxes])[0]

    @torch.no_grad()
    def encode_images(
        self, images: Sequence[ImageLike | Photograph], *, boxes: Sequence[Any] | None = None, batch_size: int = 8
    ) -> list[Any]:
        """Encode images; arguments as in :meth:`set_images`. An image does not see the others of its batch."""
        check_count("batch_size", batch_size)
        if boxes is not None and len(boxes) != len(images):
            raise UserError(f"boxes must hold one entry for each image; given {len(boxes)} for {len(images)} images.")
        pictures = [picture_of(i) for i in images]
        given = [
            None if b is None else checked_boxes(b, p.image.size)
            for b, p in zip(boxes or [None] * len(pictures), pictures, strict=True)
        ]
        return self.family.encode(pictures, given, batch_size)

    def _image(self, given: Any) -> Any:
        """The image given, or the one held."""
        held = self._held.get(None if given is None else [given])
        if len(held) != 1:
            raise UserError(
                f"{len(held)} images are set. Say which: image=ONE of what set_images returned; or ask all of them, "
                "detect_images()."
            )
        return held[0]

    @torch.no_grad()
    def picture_vectors(self, pictures: Sequence[tuple[ImageLike, Sequence[float]]]) -> tuple[Tensor, Tensor]:
        """``[N, D]`` vectors of boxes and of their whole pictures: what :meth:`TextBank.with_images` asks for."""
        found = []
        for picture in pictures:
            if not isinstance(picture, tuple | list) or len(picture) != 2:
                raise UserError("Pictures are pairs of an image and its box: [(image, [x1, y1, x2, y2]), ...].")
            taken = picture_of(picture[0])
            width, height = taken.image.size
            box = checked_boxes([picture[1]], (width, height), "The picture's box")
            if (box[:, 2:] - box[:, :2] < 1).any():
                raise UserError(f"The picture's box {list(picture[1])} has no pixels.")
            both = torch.cat([box, box.new_tensor([[0, 0, width, height]])])
            (encoded,) = self.family.encode([taken], [both], 1)
            found.append(self.family.embed(encoded)[1].float())
        stacked = torch.stack(found)
        return stacked[:, 0], stacked[:, 1]


def picture_of(image: ImageLike | Photograph) -> Photograph:
    """An image that was given, with the name of its file where it has one."""
    if isinstance(image, Photograph):
        return image
    given = as_picture(image)
    return photograph(given, given.pixels())


def photograph(given: GivenPicture, pixels: np.ndarray) -> Photograph:
    """A picture that was read, named by its file where it has one."""
    inside = str(getattr(given.source, "filename", "") or "")
    name = inside or ("" if given.name == "image" else given.name)
    # A file is read again when it is drawn; pixels that came as such are at hand anyway.
    return Photograph(Image.fromarray(pixels), name, given)
