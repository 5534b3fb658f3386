"""Boxes of the zero-shot detectors of transformers: their boxes, our ranking.

OWLv2 tells by itself whether a patch shows an object. MM-Grounding-DINO and LLMDet (the same model class with other
weights) read a text; they are asked for things in general, so that an image is encoded once for all texts.

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
from smartclip_det.models.boxes.base import FoundBoxes, Photograph

#: Repositories of the hub by short name.
ZERO_SHOT = {
    "owlv2": "google/owlv2-base-patch16-ensemble",
    "mm-grounding-dino": "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det",
    "llmdet": "iSEE-Laboratory/llmdet_tiny",
}
PROMPT = "object. thing. person. animal. vehicle. furniture. food. tool."
_TYPES = ("owlv2", "mm-grounding-dino", "grounding-dino")


class TransformersBoxes:
    """The best boxes of OWLv2, Grounding DINO, MM-Grounding-DINO or LLMDet, whatever is in them."""

    def __init__(
        self, model: str = "owlv2", *, prompt: str = PROMPT, max_boxes: int = 300, nms_iou: float = 0.7
    ) -> None:
        """Load, by transformers' own route and cache.

        Args:
            model: a short name in :data:`ZERO_SHOT`, ``owner/name`` on the hub, or a folder.
            prompt: what models that read a text are asked for; kinds of things, with dots between them.
            max_boxes: boxes of a picture at most.
            nms_iou: overlap over which the weaker box goes.

        Raises:
            UserError: without transformers, for a model that is not there, and for another kind of model.
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
                # OWLv2 is not asked for anything, so it needs no tokenizer.
                maker = AutoImageProcessor if kind == "owlv2" else AutoProcessor
                self.processor: Any = maker.from_pretrained(source)
                self.model: Any = AutoModelForZeroShotObjectDetection.from_pretrained(source).eval()
        except (OSError, ValueError) as error:
            first = str(error).strip().split("\n")[0]
            raise UserError(f"The detector {source} could not be loaded by transformers ({first:.300}).") from error
        if kind not in _TYPES:
            raise UserError(f"{source} is of type {kind}; boxes come from models of type {', '.join(_TYPES)}.")
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
    def __call__(self, pictures: Sequence[Photograph]) -> list[FoundBoxes]:
        """Boxes of each picture, best first, on the model's device."""
        return [self._one(p.image) for p in pictures]

    def _one(self, image: Image.Image) -> FoundBoxes:
        shares, scores = self._owl(image) if self.kind == "owlv2" else self._dino(image)
        # OWLv2's square input is the picture padded at the right and below.
        sides = (max(image.size),) * 2 if self.kind == "owlv2" else image.size
        corners = box_convert(shares.float(), "cxcywh", "xyxy") * shares.new_tensor([*sides, *sides]).float()
        limit = corners.new_tensor([*image.size, *image.size])
        corners = torch.minimum(corners.clamp(min=0), limit)
        inside = ((corners[:, 2:] - corners[:, :2]) >= 1).all(dim=1)
        corners, scores = corners[inside], scores[inside].float()
        kept = nms(corners, scores, self.nms_iou)[: self.max_boxes]
        return FoundBoxes(corners[kept], scores[kept])

    def _owl(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """``[Q, 4]`` cxcywh shares of the padded square, and ``[Q]`` objectness."""
        inputs = self.processor(images=image, return_tensors="pt").to(self.model.device)
        features = self.model.image_embedder(pixel_values=inputs["pixel_values"])[0]
        flat = features.flatten(1, 2)
        boxes = self.model.box_predictor(flat, features)
        return boxes[0], self.model.objectness_predictor(flat)[0].flatten().sigmoid()

    def _dino(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """``[Q, 4]`` cxcywh shares of the picture, and ``[Q]`` the best score of any word of the prompt."""
        inputs = self.processor(images=image, text=self.prompt, return_tensors="pt").to(self.model.device)
        out = self.model(**inputs)
        return out.pred_boxes[0], out.logits[0].sigmoid().amax(dim=-1)
