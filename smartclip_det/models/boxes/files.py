"""Boxes that were found before, from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from smartclip_det.core.errors import UserError
from smartclip_det.formats.box_files import read_boxes
from smartclip_det.models.boxes.base import FoundBoxes, Photograph, checked_boxes, last_name


class FileBoxes:
    """Boxes by the pictures' file names: annotations, saved detections, or a plain mapping."""

    def __init__(self, path: str | Path, instances: str | Path | None = None) -> None:
        """Read; see :func:`read_boxes` for the forms.

        Args:
            path: the file.
            instances: for a COCO result list: the annotations that name its pictures.

        Raises:
            UserError: as :func:`read_boxes`.
        """
        self.file = read_boxes(path, instances)

    def facts(self) -> dict[str, Any]:
        """The file's name."""
        return {"source": "file", "file": Path(self.file.path).name}

    def to(self, device: torch.device) -> FileBoxes:
        """Nothing moves."""
        return self

    def __call__(self, pictures: Sequence[Photograph]) -> list[FoundBoxes]:
        """Boxes of each picture, best first.

        Raises:
            UserError: for a picture that the file does not name, one of another size, and boxes that leave it.
        """
        return [self._of(p) for p in pictures]

    def _of(self, picture: Photograph) -> FoundBoxes:
        mine, size = self.file.of(picture.name), picture.image.size
        where = f"{self.file.path}, boxes of {last_name(picture.name)}"
        if mine.size is not None and tuple(mine.size) != size:
            raise UserError(
                f"{where} are of a picture of {mine.size[0]:g} x {mine.size[1]:g} pixels; this one has "
                f"{size[0]} x {size[1]}. Is it another picture, or the same at another size?"
            )
        found = FoundBoxes(checked_boxes(mine.boxes, size, where), torch.tensor(mine.scores, dtype=torch.float32))
        return found.best(len(mine.boxes))
