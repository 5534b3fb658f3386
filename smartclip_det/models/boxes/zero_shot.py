"""Boxes of zero-shot detectors from transformers, ranked by their own objectness.

OWLv2 predicts class-agnostic objectness per patch. MM-Grounding-DINO and LLMDet (the same model class with other
weights) are conditioned on a text; they get a prompt of generic categories, so that an image is encoded once for all
texts.

Shape letters: R boxes, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert, nms

from smartclip_det.core.errors import UserError
from smartclip_det.models.boxes.base import Photograph, ScoredBoxes

#: Hub repositories by short name.
ZERO_SHOT = {
    "owlv2": "google/owlv2-base-patch16-ensemble",
    "mm-grounding-dino": "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det",
    "llmdet": "iSEE-Laboratory/llmdet_tiny",
}
PROMPT = "object. thing. person. animal. vehicle. furniture. food. tool."
_TYPES = ("owlv2", "mm-grounding-dino", "grounding-dino")


class TransformersBoxes:
    """Top boxes of OWLv2, Grounding DINO, MM-Grounding-DINO or LLMDet, whatever they contain."""

    def __init__(
        self, model: str = "owlv2", *, prompt: str = PROMPT, max_boxes: int = 300, nms_iou: float = 0.7
    ) -> None:
        """Load the model through transformers and its cache.

        Args:
            model: a short name in :data:`ZERO_SHOT`, ``owner/name`` on the hub, or a folder.
            prompt: prompt for text-conditioned models: generic categories, separated by dots.
            max_boxes: maximum number of boxes per image.
            nms_iou: IoU above which the lower-scored box is suppressed.

        Raises:
            UserError: without transformers, or for a model that does not exist or is of another type.
        """
        try:
            from transformers import (
                AutoConfig,
                AutoImageProcessor,
                AutoModelForZeroShotObjectDetection,
                AutoProcessor,
            )
        except ImportError as error:
            raise UserError(
                f'Boxes of {model} need transformers: pip install "smartclip_det[grounding-dino]" ({error}).'
            ) from error
        self.name = model
        source = ZERO_SHOT.get(model, model)
        try:
            kind = AutoConfig.from_pretrained(source).model_type
            if kind in _TYPES:
                # OWLv2 is not prompted, so it needs no tokenizer.
                maker = AutoImageProcessor if kind == "owlv2" else AutoProcessor
                self.processor: Any = maker.from_pretrained(source)
                self.model: Any = AutoModelForZeroShotObjectDetection.from_pretrained(source).eval()
        except (OSError, ValueError) as error:
            first = str(error).strip().split("\n")[0]
            raise UserError(f"The detector {source} could not be loaded by transformers ({first:.300}).") from error
        if kind not in _TYPES:
            raise UserError(f"{source} has type {kind}; supported types: {', '.join(_TYPES)}.")
        self.kind, self.prompt, self.max_boxes, self.nms_iou = kind, prompt, max_boxes, nms_iou
        self.model.requires_grad_(False)

    def facts(self) -> dict[str, Any]:
        """Model, prompt and limits."""
        name = Path(self.name).name if Path(self.name).is_dir() else ZERO_SHOT.get(self.name, self.name)
        prompt = {} if self.kind == "owlv2" else {"prompt": self.prompt}
        limits = {"max_boxes": self.max_boxes, "nms_iou": self.nms_iou}
        return {"source": "transformers", "model": name, **prompt, **limits}

    def to(self, device: torch.device) -> TransformersBoxes:
        """Move the model."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Photograph]) -> list[ScoredBoxes]:
        """Boxes of each image, best first, on the model's device."""
        return [self._one(p.image) for p in pictures]

    def _one(self, image: Image.Image) -> ScoredBoxes:
        relative, scores = self._owl(image) if self.kind == "owlv2" else self._dino(image)
        # OWLv2's square input is the image padded at the right and bottom.
        sides = (max(image.size),) * 2 if self.kind == "owlv2" else image.size
        corners = box_convert(relative.float(), "cxcywh", "xyxy") * relative.new_tensor([*sides, *sides]).float()
        limit = corners.new_tensor([*image.size, *image.size])
        corners = torch.minimum(corners.clamp(min=0), limit)
        inside = ((corners[:, 2:] - corners[:, :2]) >= 1).all(dim=1)
        corners, scores = corners[inside], scores[inside].float()
        survivors = nms(corners, scores, self.nms_iou)[: self.max_boxes]
        return ScoredBoxes(corners[survivors], scores[survivors])

    def _owl(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """``[Q, 4]`` cxcywh relative to the padded square, and ``[Q]`` objectness."""
        inputs = self.processor(images=image, return_tensors="pt").to(self.model.device)
        features = self.model.image_embedder(pixel_values=inputs["pixel_values"])[0]
        flat = features.flatten(1, 2)
        boxes = self.model.box_predictor(flat, features)
        return boxes[0], self.model.objectness_predictor(flat)[0].flatten().sigmoid()

    def _dino(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """``[Q, 4]`` cxcywh relative to the image, and ``[Q]`` best score over the words of the prompt."""
        inputs = self.processor(images=image, text=self.prompt, return_tensors="pt").to(self.model.device)
        out = self.model(**inputs)
        return out.pred_boxes[0], out.logits[0].sigmoid().amax(dim=-1)
