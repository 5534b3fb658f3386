"""Sources of boxes by words, and the one that needs MMDetection."""

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
    """The best boxes of any MMDetection detector, whatever their class."""

    def __init__(self, config: str | Path, checkpoint: str | Path, *, max_boxes: int = 300) -> None:
        """Load.

        Args:
            config: any MMDetection config of a detector that reads no text.
            checkpoint: its weights.
            max_boxes: boxes of a picture at most.

        Raises:
            UserError: without MMDetection, for missing files, weights of another model, and detectors that read text.
        """
        from smartclip_det.apis.proposals import DetectorProposals

        self.proposals = DetectorProposals(config, checkpoint)
        if self.proposals.reads_text:
            raise UserError(
                f"{config} reads texts, so its boxes change with what is asked. Take boxes='mm-grounding-dino', which "
                "is asked for things in general, or a detector of fixed classes."
            )
        self.config, self.checkpoint, self.max_boxes = Path(config), Path(checkpoint), max_boxes

    def facts(self) -> dict[str, Any]:
        """Config, weights and limits."""
        return {
            "source": "mmdet",
            "config": self.config.name,
            "checkpoint": self.checkpoint.name,
            "max_boxes": self.max_boxes,
        }

    def to(self, device: torch.device) -> MMDetectionBoxes:
        """Move the detector."""
        self.proposals.detector.to(device)
        return self

    def __call__(self, pictures: Sequence[Photograph]) -> list[ScoredBoxes]:
        """Boxes of each picture, best first, on the CPU."""
        import numpy as np

        out = []
        for p in pictures:
            ((boxes, scores),) = self.proposals(np.asarray(p.image), [""], self.max_boxes)
            out.append(ScoredBoxes(torch.from_numpy(boxes).float().view(-1, 4), torch.from_numpy(scores).float()))
        return out


def box_source(given: str | Path | BoxSource | None, max_boxes: int = 300) -> BoxSource | None:
    """A source of boxes.

    Args:
        given: words as :data:`FORMS` tells, a ready source, or None for none (each picture comes with its boxes).
        max_boxes: boxes of a picture at most, of models.

    Raises:
        UserError: for words that are not known, with the nearest ones; files and models as their classes say.
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
                f"boxes={words!r}: a detector needs its config and its weights, mmdet:CONFIG:CHECKPOINT. Random "
                "weights give boxes that mean nothing."
            )
        return MMDetectionBoxes(config, checkpoint, max_boxes=max_boxes)
    raise _unknown(words, kind)


def _unknown(words: str, kind: str) -> UserError:
    if words.endswith(".json"):
        return UserError(f"No file of boxes at {words}.")
    if words.endswith((".py", ".pth", ".pt")):
        return UserError(f"boxes={words!r}: say mmdet:CONFIG:CHECKPOINT for a detector of MMDetection.")
    near = ", ".join(nearest(kind, BOX_SOURCES)) or "none"
    return UserError(f"boxes={words!r} is not known. Allowed: {FORMS}. Nearest: {near}.")
