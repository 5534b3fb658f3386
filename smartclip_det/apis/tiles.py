"""Large pictures in overlapping tiles, and many pictures in batches: one loop over a predictor's ``detect_images``."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from smartclip_det.apis.detections import Detections
from smartclip_det.apis.inputs import ImageLike, OnBad, Picture, check_count, check_threshold, read_images
from smartclip_det.core.errors import UserError
from smartclip_det.core.text_bank import TextBank

#: Overlap above which of two detections of one name the better is kept, where tiles overlap; supervision's.
TILE_NMS = 0.5


class Detector(Protocol):
    """What the loop needs of a predictor."""

    def detect_images(
        self,
        images: Iterable[ImageLike],
        texts: Sequence[str] | TextBank | None = None,
        *,
        batch_size: int = 1,
        threshold: float = 0.0,
        max_detections: int | None = None,
    ) -> Iterator[Detections]:
        """An answer for each image, in order."""


@dataclass
class _Waiting:
    """A picture whose tiles are on their way."""

    picture: Picture
    size: tuple[int, int]
    tiles: np.ndarray
    found: list[Detections] = field(default_factory=list)


def check_tile(tile: Any) -> tuple[int, int]:
    """Side and overlap of tiles.

    Raises:
        UserError: for anything but two whole numbers, the overlap below the side.
    """
    try:
        side, overlap = tile
    except (TypeError, ValueError):
        raise UserError(f"tile is (side, overlap) in pixels, e.g. (640, 100); given {tile!r}.") from None
    side = check_count("The side of tiles", side)
    if isinstance(overlap, bool) or not isinstance(overlap, int | np.integer) or not 0 <= overlap < side:
        raise UserError(
            f"The overlap of tiles is a whole number from 0 to below their side, {side}; given {overlap!r}."
        )
    return side, int(overlap)


def tiles_of(size: tuple[int, int], side: int, overlap: int) -> np.ndarray:
    """``[N, 4]`` xyxy tiles that cover a picture, row by row, as supervision's ``InferenceSlicer`` lays them.

    The last of a row and of a column end with the picture, so that no tile is a thin strip; without overlap they are
    cut instead.

    Args:
        size: width and height of the picture.
        side: of the tiles; a side of the picture that is shorter is not cut.
        overlap: of neighbours.
    """
    columns, rows = (_starts(length, side, side - overlap) for length in size)
    boxes = [(x, y, min(x + side, size[0]), min(y + side, size[1])) for y in rows for x in columns]
    return np.array(boxes, dtype=np.int64)


def _starts(length: int, side: int, step: int) -> list[int]:
    if length <= side:
        return [0]
    if step == side:
        return list(range(0, length, step))
    return [*range(0, length - side, step), length - side]


def answer_images(
    detector: Detector,
    images: ImageLike | Iterable[ImageLike],
    texts: Sequence[str] | TextBank | None = None,
    *,
    batch_size: int = 1,
    tile: tuple[int, int] | None = None,
    tile_nms: float = TILE_NMS,
    every: int = 1,
    on_bad: OnBad | None = None,
    **options: Any,
) -> Iterator[Detections]:
    """An answer for each image, in order, each with its ``image``; as many images are held as are in a batch.

    Args:
        detector: any predictor with ``detect_images``.
        images: see :func:`smartclip_det.apis.inputs.read_images`: folders, patterns, videos, lists, ...
        texts: phrases, or a bank; None for the vocabulary in force. They are encoded once.
        batch_size: images, or tiles, that go through the tower together.
        tile: side and overlap, in pixels; None: whole pictures.
        tile_nms: see :data:`TILE_NMS`.
        every: of videos, the first of so many frames.
        on_bad: called for a picture that cannot be read, which is then passed over; None: it is an error.
        options: of ``detect_images``: ``threshold``, ``max_detections``. With tiles, of each tile.

    Raises:
        UserError: as ``read_images`` and ``detect_images`` do.
    """
    cut = None if tile is None else check_tile(tile)
    check_threshold(tile_nms, "tile_nms")
    waiting: deque[_Waiting] = deque()

    def pieces() -> Iterator[Picture]:
        for picture, pixels in read_images(images, every=every, on_bad=on_bad):
            size = (pixels.shape[1], pixels.shape[0])
            tiles = np.array([[0, 0, *size]]) if cut is None else tiles_of(size, *cut)
            waiting.append(_Waiting(picture, size, tiles))
            for x1, y1, x2, y2 in tiles:
                # Sources of boxes look for a picture by its name.
                yield Picture(pixels[y1:y2, x1:x2], picture.name)

    for found in detector.detect_images(pieces(), texts, batch_size=batch_size, **options):
        first = waiting[0]
        first.found.append(found)
        if len(first.found) == len(first.tiles):
            waiting.popleft()
            yield replace(found, image=first.picture) if cut is None else _joined(first, tile_nms)


def _joined(whole: _Waiting, iou: float) -> Detections:
    """The tiles' answers in pixels of the picture, each object once."""
    parts = [_moved(f, tile, whole.size) for f, tile in zip(whole.found, whole.tiles, strict=True)]
    found = Detections.join(parts)
    return replace(found if len(parts) == 1 else found.nms(iou), image=whole.picture)


def _moved(found: Detections, tile: np.ndarray, size: tuple[int, int]) -> Detections:
    x1, y1, x2, y2 = (int(v) for v in tile)
    masks = found.masks
    if masks is not None:
        masks = np.zeros((len(found), size[1], size[0]), dtype=found.masks.dtype)  # type: ignore[union-attr]
        masks[:, y1:y2, x1:x2] = found.masks
    return replace(found, boxes=found.boxes + np.array([x1, y1, x1, y1], found.boxes.dtype), masks=masks)
