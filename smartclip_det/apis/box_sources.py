"""Parsing of box source names, and the box source that needs MMDetection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from smartclip_det.core.errors import UserError, nearest
from smartclip_det.core.words import BOX_SOURCES
from smartclip_det.models.boxes import (
    BoxSource,
    FileBoxes,
    Photograph,
    ScoredBoxes,
    TorchvisionBoxes,
    TransformersBoxes,
)
from smartclip_det.models.boxes.rpn import DEFAULT_MODEL
from smartclip_det.models.boxes.zero_shot import ZERO_SHOT

FORMS = (
    "torchvision[:MODEL[:WEIGHTS]], owlv2, mm-grounding-dino, llmdet, transformers:OWNER/NAME, "
    "mmdet:CONFIG:CHECKPOINT, or a file of boxes (.json)"
)


class MMDetectionBoxes:
    """Class-agnostic boxes of an MMDetection detector: its best boxes, regardless of class."""

    def __init__(self, config: str | Path, checkpoint: str | Path, *, max_boxes: int = 300) -> None:
        """Load the detector.

        Args:
            config: MMDetection config of a detector without text input.
            checkpoint: weights of the detector.
            max_boxes: maximum number of boxes per image.

        Raises:
            UserError: without MMDetection, for missing files, mismatched weights, and detectors with text input.
        """
        from smartclip_det.apis.proposals import DetectorProposals

        self.proposals = DetectorProposals(config, checkpoint)
        if self.proposals.reads_text:
            raise UserError(
                f"{config} takes text input, so its boxes depend on the query. Use boxes='mm-grounding-dino', which "
                "is queried with a generic prompt, or a detector with fixed classes."
            )
        self.config, self.checkpoint, self.max_boxes = Path(config), Path(checkpoint), max_boxes

    def facts(self) -> dict[str, Any]:
        """Describe the source for stamps: config, weights and limits."""
        return {
            "source": "mmdet",
            "config": self.config.name,
            "checkpoint": self.checkpoint.name,
            "max_boxes": self.max_boxes,
        }

    def to(self, device: torch.device) -> MMDetectionBoxes:
        """Move the detector to a device."""
        self.proposals.detector.to(device)
        return self

    def __call__(self, pictures: Sequence[Photograph]) -> list[ScoredBoxes]:
        """Boxes of each image by descending score, on the CPU."""
        import numpy as np

        out = []
        for p in pictures:
            ((boxes, scores),) = self.proposals(np.asarray(p.image), [""], self.max_boxes)
            out.append(ScoredBoxes(torch.from_numpy(boxes).float().view(-1, 4), torch.from_numpy(scores).float()))
        return out


def box_source(given: str | Path | BoxSource | None, max_boxes: int = 300) -> BoxSource | None:
    """Create a box source.

    Args:
        given: one of :data:`FORMS`, a ready source, or None (boxes are then passed with each image).
        max_boxes: maximum number of boxes per image, for model-based sources.

    Raises:
        UserError: for unknown names, with the nearest ones; also those of the source classes.
    """
    if given is None or not isinstance(given, str | Path):
        return given
    words = str(given)
    if Path(words).is_file() and not words.endswith((".py", ".pth", ".pt")):
        return FileBoxes(words)
    kind, _, rest = words.partition(":")
    if kind == "torchvision":
        model, _, weights = rest.partition(":")
        chosen = None if weights == "random" else weights or "DEFAULT"
        return TorchvisionBoxes(model or DEFAULT_MODEL, weights=chosen, max_boxes=max_boxes)
    if kind in ZERO_SHOT or (kind == "transformers" and rest):
        return TransformersBoxes(rest or kind, max_boxes=max_boxes)
    if kind == "mmdet":
        config, _, checkpoint = rest.partition(":")
        if not config or not checkpoint:
            raise UserError(
                f"boxes={words!r}: a detector needs a config and a checkpoint, mmdet:CONFIG:CHECKPOINT. Random "
                "weights give meaningless boxes."
            )
        return MMDetectionBoxes(config, checkpoint, max_boxes=max_boxes)
    raise _unknown(words, kind)


def _unknown(words: str, kind: str) -> UserError:
    if words.endswith(".json"):
        return UserError(f"No box file at {words}.")
    if words.endswith((".py", ".pth", ".pt")):
        return UserError(f"boxes={words!r}: use mmdet:CONFIG:CHECKPOINT for an MMDetection detector.")
    near = ", ".join(nearest(kind, BOX_SOURCES)) or "none"
    return UserError(f"boxes={words!r} is unknown. Allowed: {FORMS}. Nearest: {near}.")
