"""What a source of boxes is asked, and what it answers. Boxes are xyxy pixels of the picture.

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

#: Share of a side by which boxes may leave their picture: annotations are rounded, and detectors overshoot.
OVERSHOOT = 0.02


@dataclass(frozen=True)
class Photograph:
    """A picture that boxes are wanted of, with its pixels.

    Attributes:
        image: RGB.
        name: path of its file, or what else it is called; empty for one that came without.
        given: what it was read from, for answers about it.
    """

    image: Image.Image
    name: str = ""
    given: Any = None


@dataclass(frozen=True)
class FoundBoxes:
    """Boxes of one picture, best first.

    Attributes:
        boxes: ``[R, 4]`` xyxy pixels.
        scores: ``[R]`` that there is something, in [0, 1].
    """

    boxes: Tensor
    scores: Tensor

    def best(self, count: int) -> FoundBoxes:
        """The ``count`` best; of equal scores the earlier."""
        order = self.scores.argsort(descending=True, stable=True)[:count]
        return FoundBoxes(self.boxes[order], self.scores[order])


class BoxSource(Protocol):
    """Gives boxes of pictures, whatever they show; knows nothing of the texts that are asked for."""

    def facts(self) -> dict[str, Any]:
        """What it is, for the stamp of answers."""
        ...

    def to(self, device: torch.device) -> BoxSource:
        """Move what it computes with; returns itself."""
        ...

    def __call__(self, pictures: Sequence[Photograph]) -> list[FoundBoxes]:
        """Boxes of each picture, best first."""
        ...


def checked_boxes(boxes: Any, size: tuple[int, int], where: str = "The boxes") -> Tensor:
    """``[R, 4]`` fp32 of boxes that somebody gave; R may be 0.

    Args:
        boxes: R boxes xyxy.
        size: width and height of the picture.
        where: the boxes come from, for messages.

    Raises:
        UserError: for another shape, numbers that are not finite, corners the wrong way round, and boxes that leave the
            picture by more than :data:`OVERSHOOT` of its side: they are of another picture, or in another form.
    """
    try:
        found = np.asarray([] if boxes is None else boxes, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} must be R boxes of four numbers [x1, y1, x2, y2]; {error}.") from error
    if not found.size:
        return torch.zeros(0, 4)
    if found.ndim != 2 or found.shape[1] != 4:
        raise UserError(f"{where} must be [R, 4], xyxy pixels; given {list(found.shape)}.")
    bad = ~(np.abs(found) <= LARGEST).all(axis=1)
    if bad.any():
        raise UserError(f"{where}: {bad.sum()} of {len(found)} hold a number that is not finite.")
    turned = (found[:, 2:] < found[:, :2]).any(axis=1)
    if turned.any():
        raise UserError(
            f"{where}: {turned.sum()} of {len(found)} have x2 < x1 or y2 < y1, the first {found[turned][0].tolist()}. "
            "Boxes are [x1, y1, x2, y2] here; [x, y, width, height] becomes that by adding."
        )
    limit = np.array([*size, *size], dtype=np.float64)
    slack = np.maximum(OVERSHOOT * limit, 1)
    left = ((found < -slack) | (found > limit + slack)).any(axis=1)
    if left.any():
        raise UserError(
            f"{where}: {left.sum()} of {len(found)} leave the picture of {size[0]} x {size[1]} pixels, the first "
            f"{found[left][0].tolist()}. Are they of another picture, of the same at another size, or not "
            "[x1, y1, x2, y2]?"
        )
    return torch.from_numpy(found).float()


def last_name(name: str) -> str:
    """Of a path, for messages."""
    return Path(name).name or "the picture"
