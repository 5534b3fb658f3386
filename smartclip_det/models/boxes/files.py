"""Precomputed boxes from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from smartclip_det.core.errors import UserError
from smartclip_det.formats.box_files import read_boxes
from smartclip_det.models.boxes.base import Photograph, ScoredBoxes, checked_boxes, last_name


class FileBoxes:
    """Boxes by image file name: annotations, saved detections, or a plain mapping."""

    def __init__(self, path: str | Path, instances: str | Path | None = None) -> None:
        """Read the file; see :func:`read_boxes` for the formats.

        Args:
            path: the file.
            instances: annotations that name the images of a COCO result list.

        Raises:
            UserError: as for :func:`read_boxes`.
        """
        self.file = read_boxes(path, instances)

    def facts(self) -> dict[str, Any]:
        """Name of the file."""
        return {"source": "file", "file": Path(self.file.path).name}

    def to(self, device: torch.device) -> FileBoxes:
        """No-op."""
        return self

    def __call__(self, pictures: Sequence[Photograph]) -> list[ScoredBoxes]:
        """Boxes of each image, best first.

        Raises:
            UserError: for an image that the file does not list or lists with another size, or boxes outside it.
        """
        return [self._of(p) for p in pictures]

    def _of(self, picture: Photograph) -> ScoredBoxes:
        entry, size = self.file.of(picture.name), picture.image.size
        where = f"{self.file.path}, boxes of {last_name(picture.name)}"
        if entry.size is not None and tuple(entry.size) != size:
            raise UserError(
                f"{where} are for an image of {entry.size[0]:g} x {entry.size[1]:g} pixels; this one has "
                f"{size[0]} x {size[1]}. Is it another image, or the same at another size?"
            )
        boxes = ScoredBoxes(checked_boxes(entry.boxes, size, where), torch.tensor(entry.scores, dtype=torch.float32))
        return boxes.best(len(entry.boxes))
