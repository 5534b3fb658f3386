"""Interface of box sources. Boxes are xyxy pixels of the image.

Shape letters: R boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from smartclip_det.core.errors import UserError
from smartclip_det.formats.boxes import LARGEST

#: Fraction of a side by which boxes may exceed the image: annotations are rounded, and detectors overshoot.
OVERSHOOT = 0.02


@dataclass(frozen=True)
class Photograph:
    """An image to find boxes in.

    Attributes:
        image: RGB.
        name: path of its file, or another name; empty if unknown.
        given: the image as given by the caller, returned with the results.
    """

    image: Image.Image
    name: str = ""
    given: Any = None


@dataclass(frozen=True)
class ScoredBoxes:
    """Boxes of one image, best first.

    Attributes:
        boxes: ``[R, 4]`` xyxy pixels.
        scores: ``[R]`` objectness in [0, 1].
    """

    boxes: Tensor
    scores: Tensor

    def best(self, count: int) -> ScoredBoxes:
        """The ``count`` best boxes; ties keep their order."""
        order = self.scores.argsort(descending=True, stable=True)[:count]
        return ScoredBoxes(self.boxes[order], self.scores[order])


class BoxSource(Protocol):
    """Proposes class-agnostic boxes; independent of the texts."""

    def facts(self) -> dict[str, Any]:
        """Description of the source, for the stamp of results."""
        ...

    def to(self, device: torch.device) -> BoxSource:
        """Move the model to a device; returns itself."""
        ...

    def __call__(self, pictures: Sequence[Photograph]) -> list[ScoredBoxes]:
        """Boxes of each image, best first."""
        ...


def checked_boxes(boxes: Any, size: tuple[int, int], where: str = "The boxes") -> Tensor:
    """Validate user-supplied boxes and return them as ``[R, 4]`` fp32; R may be 0.

    Args:
        boxes: R boxes xyxy.
        size: width and height of the image.
        where: origin of the boxes, for messages.

    Raises:
        UserError: for another shape, non-finite numbers, swapped corners, or boxes that exceed the image by more than
            :data:`OVERSHOOT` of a side, which indicates another image or box format.
    """
    try:
        array = np.asarray([] if boxes is None else boxes, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} must be R boxes of four numbers [x1, y1, x2, y2]; {error}.") from error
    if not array.size:
        return torch.zeros(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise UserError(f"{where} must be [R, 4], xyxy pixels; given {list(array.shape)}.")
    bad = ~(np.abs(array) <= LARGEST).all(axis=1)
    if bad.any():
        raise UserError(f"{where}: {bad.sum()} of {len(array)} contain a number that is not finite.")
    swapped = (array[:, 2:] < array[:, :2]).any(axis=1)
    if swapped.any():
        raise UserError(
            f"{where}: {swapped.sum()} of {len(array)} have x2 < x1 or y2 < y1, the first is "
            f"{array[swapped][0].tolist()}. Boxes must be [x1, y1, x2, y2]; convert [x, y, width, height]."
        )
    limit = np.array([*size, *size], dtype=np.float64)
    slack = np.maximum(OVERSHOOT * limit, 1)
    outside = ((array < -slack) | (array > limit + slack)).any(axis=1)
    if outside.any():
        raise UserError(
            f"{where}: {outside.sum()} of {len(array)} exceed the image of {size[0]} x {size[1]} pixels, the first is "
            f"{array[outside][0].tolist()}. Do they belong to another image, to the same image at another size, or are "
            "they not [x1, y1, x2, y2]?"
        )
    return torch.from_numpy(array).float()


def last_name(name: str) -> str:
    """Last component of a path, for messages."""
    return Path(name).name or "the image"
