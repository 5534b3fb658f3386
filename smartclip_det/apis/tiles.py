"""Sliced inference on large images, and batching over many: one loop over a predictor's ``detect_images``."""

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

#: IoU threshold of NMS among the tiles of an image; the default of supervision's ``InferenceSlicer``.
TILE_NMS = 0.5


class Detector(Protocol):
    """The predictor interface that the loop uses."""

    def detect_images(
        self,
        images: Iterable[ImageLike],
        texts: Sequence[str] | TextBank | None = None,
        *,
        batch_size: int = 1,
        threshold: float = 0.0,
        max_detections: int | None = None,
    ) -> Iterator[Detections]:
        """Yield the detections of each image, in order."""


@dataclass
class _Pending:
    """An image with tiles still being processed."""

    picture: Picture
    size: tuple[int, int]
    tiles: np.ndarray
    detections: list[Detections] = field(default_factory=list)


def check_tile(tile: Any) -> tuple[int, int]:
    """Check the side and overlap of tiles.

    Raises:
        UserError: unless both are integers and the overlap is below the side.
    """
    try:
        side, overlap = tile
    except (TypeError, ValueError):
        raise UserError(f"tile must be (side, overlap) in pixels, e.g. (640, 100); got {tile!r}.") from None
    side = check_count("The side of tiles", side)
    if isinstance(overlap, bool) or not isinstance(overlap, int | np.integer) or not 0 <= overlap < side:
        raise UserError(f"The tile overlap must be an integer from 0 to {side - 1}; got {overlap!r}.")
    return side, int(overlap)


def tiles_of(size: tuple[int, int], side: int, overlap: int) -> np.ndarray:
    """Return ``[N, 4]`` xyxy tiles that cover an image, row by row, as in supervision's ``InferenceSlicer``.

    The last tile of a row or column is shifted to end with the image, so that no tile is a thin strip; without overlap
    it is cropped instead.

    Args:
        size: (width, height) of the image.
        side: side of the tiles; a shorter image side is not split.
        overlap: overlap of neighbouring tiles.
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
    """Yield the detections of each image, in order, with their ``image``; at most one batch of images is in memory.

    Args:
        detector: any predictor with ``detect_images``.
        images: see :func:`smartclip_det.apis.inputs.read_images`: folders, patterns, videos, lists, ...
        texts: phrases, or a bank; None for the current vocabulary. They are encoded once.
        batch_size: images (or tiles) per batch.
        tile: (side, overlap) in pixels; None: whole images.
        tile_nms: see :data:`TILE_NMS`.
        every: for videos, take one of every N frames.
        on_bad: called for an unreadable image, which is then skipped; None: raise.
        options: options of ``detect_images``: ``threshold``, ``max_detections``. With tiles, they apply per tile.

    Raises:
        UserError: as ``read_images`` and ``detect_images`` do.
    """
    cut = None if tile is None else check_tile(tile)
    check_threshold(tile_nms, "tile_nms")
    pending: deque[_Pending] = deque()

    def pieces() -> Iterator[Picture]:
        for picture, pixels in read_images(images, every=every, on_bad=on_bad):
            size = (pixels.shape[1], pixels.shape[0])
            tiles = np.array([[0, 0, *size]]) if cut is None else tiles_of(size, *cut)
            pending.append(_Pending(picture, size, tiles))
            for x1, y1, x2, y2 in tiles:
                # Box sources that read files look an image up by its name.
                yield Picture(pixels[y1:y2, x1:x2], picture.name)

    for detections in detector.detect_images(pieces(), texts, batch_size=batch_size, **options):
        first = pending[0]
        first.detections.append(detections)
        if len(first.detections) == len(first.tiles):
            pending.popleft()
            yield replace(detections, image=first.picture) if cut is None else _joined(first, tile_nms)


def _joined(whole: _Pending, iou: float) -> Detections:
    """Merge the detections of all tiles in image coordinates, with NMS across tiles."""
    parts = [_moved(f, tile, whole.size) for f, tile in zip(whole.detections, whole.tiles, strict=True)]
    detections = Detections.join(parts)
    return replace(detections if len(parts) == 1 else detections.nms(iou), image=whole.picture)


def _moved(detections: Detections, tile: np.ndarray, size: tuple[int, int]) -> Detections:
    x1, y1, x2, y2 = (int(v) for v in tile)
    masks = detections.masks
    if masks is not None:
        masks = np.zeros((len(detections), size[1], size[0]), dtype=detections.masks.dtype)  # type: ignore[union-attr]
        masks[:, y1:y2, x1:x2] = detections.masks
    return replace(detections, boxes=detections.boxes + np.array([x1, y1, x1, y1], detections.boxes.dtype), masks=masks)
