"""Trained grounding heads: no proposals; an expression is encoded as a whole, and may have no target.

Shape letters: K texts, H W image pixels, h w grid cells, D joint embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from smartclip_det.apis.detections import Detections
from smartclip_det.apis.explanation import Explanation
from smartclip_det.apis.families.base import Family, answer
from smartclip_det.core.errors import UserError
from smartclip_det.core.similarity import paired_masked_cosine
from smartclip_det.core.text_bank import TextBank
from smartclip_det.models.boxes import Photograph
from smartclip_det.models.grounding.parsing import Entity
from smartclip_det.models.regions import pool_regions
from smartclip_det.utils.devices import full_precision
from smartclip_det.utils.images import fit_square, pixels, square_scale

if TYPE_CHECKING:
    from smartclip_det.models.grounding.fusion_head import GroundingOutput, ImageTokens

#: Sentences per forward pass of the head; each has its own copy of the image tokens.
CHUNK = 64


@dataclass(frozen=True)
class EncodedSquare:
    """An encoded image; immutable.

    Attributes:
        tokens: image tokens of the towers.
        scale: (x, y) ratio of square pixels to image pixels.
        size: (width, height) of the image.
        picture: the image.
        given: ``[R, 4]`` xyxy boxes passed with the image, used for vectors; the head predicts its own.
    """

    tokens: ImageTokens
    scale: tuple[float, float]
    size: tuple[int, int]
    picture: Photograph
    given: Tensor | None = None


class Referring(Family):
    """Family of :class:`SmartCLIPReferring`; class names are read as expressions."""

    kind = "grounding head"

    def __init__(self, model: Any, fit: str = "pad", *, cache_dir: str | Path | None = None) -> None:
        """Initialise the family.

        Args:
            model: a :class:`SmartCLIPReferring`.
            fit: how images are made square: ``pad`` or ``squash``, as in training.
            cache_dir: cache folder for encoded texts; None: no cache.
        """
        self.model, self.fit, self.cache_dir = model.eval(), fit, cache_dir

    @property
    def towers(self) -> Any:
        """The head's frozen towers."""
        return self.model.towers

    @property
    def device(self) -> torch.device:
        """Device of the head."""
        return self.model.mean.device

    def facts(self) -> dict[str, Any]:
        """Describe mask mode and towers."""
        return {"mask_mode": self.model.mask_mode, "towers": self.model.towers.checkpoint_hash}

    def check_bank(self, bank: TextBank) -> TextBank:
        """Check a bank; rows from images are rejected, as the head reads word tokens.

        Raises:
            UserError: for rows from images, and those of the base class.
        """
        if bank.picture_names:
            raise UserError(
                "A grounding head needs word tokens, which rows from images do not have: "
                f"{', '.join(bank.picture_names)}. Leave these classes out, bank.select([names of the others]), or use "
                "a detector or Predictor.from_pretrained, which accept rows from images."
            )
        return super().check_bank(bank)

    def encode(
        self, pictures: Sequence[Photograph], boxes: Sequence[Tensor | None], batch_size: int
    ) -> list[EncodedSquare]:
        """Encode each image once, for all expressions."""
        out, side = [], self.model.image_size
        for picture, given in zip(pictures, boxes, strict=True):
            square = pixels(fit_square(picture.image, side, self.fit)).to(self.device)
            with full_precision(self.device):
                tokens = self.model.image_tokens(square[None])
            size = picture.image.size
            out.append(EncodedSquare(tokens, square_scale(size, side, self.fit), size, picture, given))
        return out

    def _outputs(self, image: EncodedSquare, texts: Sequence[str]) -> list[tuple[GroundingOutput, int]]:
        """Return, for each text, the output that contains it and its row in that output."""
        out = []
        for start in range(0, len(texts), CHUNK):
            part = texts[start : start + CHUNK]
            index = torch.zeros(len(part), dtype=torch.long, device=self.device)
            with full_precision(self.device):
                output = self.model.head(image.tokens, self.model.text_tokens(part), index)
            out += [(output, k) for k in range(len(part))]
        return out

    def _boxes(self, image: EncodedSquare, texts: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        """Return boxes and probabilities of each text, best first, on the CPU; one copy per output."""
        width, height = image.size
        results = []
        for output in (out for out, k in self._outputs(image, texts) if k == 0):
            results += self.model.boxes_of(output, [(image.scale, (height, width))] * len(output.boxes))
        return results

    def detect(self, image: EncodedSquare, bank: TextBank, threshold: float, limit: int | None) -> Detections:
        """Return the boxes of each name, all names together, best first."""
        results = self._boxes(image, bank.names) if len(bank) else []
        if not results:
            return Detections.none(bank.names, image.picture.given)
        boxes, scores = (torch.cat(part) for part in zip(*results, strict=True))
        labels = torch.cat([torch.full((len(s),), n, device=s.device) for n, (_, s) in enumerate(results)])
        order = scores.argsort(descending=True, stable=True)
        order = order[scores[order] >= threshold][:limit]
        return answer(boxes[order], scores[order], labels[order], bank.names, image.picture)

    def ground(
        self, image: EncodedSquare, trees: Mapping[str, Entity], reading: str, top_k: int, threshold: float
    ) -> dict[str, Detections]:
        """Return the boxes that the head predicts for each expression."""
        answers = {}
        for text, (boxes, scores) in zip(trees, self._boxes(image, list(trees)), strict=True):
            keep = (scores >= threshold).nonzero().flatten()[:top_k]
            answers[text] = answer(boxes[keep], scores[keep], torch.zeros_like(keep), (text,), image.picture)
        return answers

    def segment(self, image: EncodedSquare, expression: str, boxes: Tensor | None) -> np.ndarray:
        """Return the mask ``[1, H, W]`` bool of an expression, for heads with a mask branch."""
        width, height = image.size
        ((output, k),) = self._outputs(image, [expression])
        if output.pixels is None:
            raise UserError("This head has no mask branch. Train one with model.head.mask_branch=True.")
        return self.model.mask_of(output.pixels[k], image.scale, (height, width))[None]

    def explain(self, image: EncodedSquare, text: str) -> Explanation:
        """Return the towers' masked cosine of each grid cell with a text (before the head), and the text's mask."""
        tokens, scale, (width, height) = image.tokens, image.scale, image.size
        with full_precision(self.device):
            text_tokens = self.model.text_tokens([text])
            cosine = paired_masked_cosine(
                tokens.dense.flatten(2).transpose(1, 2), text_tokens.embeds, text_tokens.masks
            )
        h, w = tokens.dense.shape[-2:]
        patch = self.model.towers.config.patch_size
        rows, columns = (max(1, round(n * s / patch)) for n, s in zip((height, width), scale[::-1], strict=True))
        mask: Tensor = torch.ones_like(text_tokens.embeds) if text_tokens.masks is None else text_tokens.masks
        return Explanation(cosine.view(h, w)[:rows, :columns].cpu().numpy(), mask[0].cpu().numpy(), text)

    def embed(self, image: EncodedSquare) -> tuple[Tensor, Tensor]:
        """Return the given boxes (default: the whole image), and the towers' dense map pooled in them."""
        width, height = image.size
        boxes = torch.tensor([[0.0, 0, width, height]]) if image.given is None else image.given
        scale = boxes.new_tensor([*image.scale] * 2)
        rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes * scale], dim=1).to(self.device)
        return boxes, pool_regions(image.tokens.dense, rois, self.model.towers.config.patch_size)
