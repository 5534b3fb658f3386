"""Trained grounding heads: no proposals, the whole expression read at once, and "none" as an answer.

Shape letters: K texts, H W pixels of the picture, h w grid cells, D joint embedding.
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

#: Sentences in one pass of the head: each has its own copy of the image's tokens.
CHUNK = 64


@dataclass(frozen=True)
class EncodedSquare:
    """What an image is encoded to, once; nothing changes it.

    Attributes:
        tokens: of the towers.
        scale: pixels of the square over pixels of the image, x and y.
        size: width and height of the image.
        picture: the image itself.
        given: ``[R, 4]`` xyxy boxes that came with the image, for vectors; the head finds its own.
    """

    tokens: ImageTokens
    scale: tuple[float, float]
    size: tuple[int, int]
    picture: Photograph
    given: Tensor | None = None


class Referring(Family):
    """A :class:`SmartCLIPReferring`; a class of a vocabulary is an expression to it."""

    kind = "grounding head"

    def __init__(self, model: Any, fit: str = "pad", *, cache_dir: str | Path | None = None) -> None:
        """Build.

        Args:
            model: a :class:`SmartCLIPReferring`.
            fit: how images become squares: ``pad`` or ``squash``, as in training.
            cache_dir: folder of encoded texts, None for none.
        """
        self.model, self.fit, self.cache_dir = model.eval(), fit, cache_dir

    @property
    def towers(self) -> Any:
        """The head's frozen towers."""
        return self.model.towers

    @property
    def device(self) -> torch.device:
        """Where the head is."""
        return self.model.mean.device

    def facts(self) -> dict[str, Any]:
        """Masks and towers."""
        return {"mask_mode": self.model.mask_mode, "towers": self.model.towers.checkpoint_hash}

    def check_bank(self, bank: TextBank) -> TextBank:
        """A bank whose names the head can read: rows from pictures mean nothing to it."""
        if "rows_from_pictures" in bank.provenance:
            raise UserError(
                "A grounding head reads words, token by token: a row from pictures has none. Use a detector or "
                "Predictor.from_pretrained for it."
            )
        return super().check_bank(bank)

    def encode(
        self, pictures: Sequence[Photograph], boxes: Sequence[Tensor | None], batch_size: int
    ) -> list[EncodedSquare]:
        """Encode each picture, once for all expressions."""
        out, side = [], self.model.image_size
        for picture, given in zip(pictures, boxes, strict=True):
            square = pixels(fit_square(picture.image, side, self.fit)).to(self.device)
            with full_precision(self.device):
                tokens = self.model.image_tokens(square[None])
            size = picture.image.size
            out.append(EncodedSquare(tokens, square_scale(size, side, self.fit), size, picture, given))
        return out

    def _outputs(self, image: EncodedSquare, texts: Sequence[str]) -> list[tuple[GroundingOutput, int]]:
        """For each text, the output that holds it, and its row."""
        out = []
        for start in range(0, len(texts), CHUNK):
            part = texts[start : start + CHUNK]
            index = torch.zeros(len(part), dtype=torch.long, device=self.device)
            with full_precision(self.device):
                found = self.model.head(image.tokens, self.model.text_tokens(part), index)
            out += [(found, k) for k in range(len(part))]
        return out

    def _boxes(self, image: EncodedSquare, texts: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        """Boxes and probabilities of each text, best first, on the host: one copy for each output."""
        width, height = image.size
        found = []
        for output in (out for out, k in self._outputs(image, texts) if k == 0):
            found += self.model.boxes_of(output, [(image.scale, (height, width))] * len(output.boxes))
        return found

    def detect(self, image: EncodedSquare, bank: TextBank, threshold: float, limit: int | None) -> Detections:
        """The boxes that each name means, all names together, best first."""
        found = self._boxes(image, bank.names) if len(bank) else []
        if not found:
            return Detections.none(bank.names, image.picture.given)
        boxes, scores = (torch.cat(part) for part in zip(*found, strict=True))
        labels = torch.cat([torch.full((len(s),), n, device=s.device) for n, (_, s) in enumerate(found)])
        order = scores.argsort(descending=True, stable=True)
        order = order[scores[order] >= threshold][:limit]
        return answer(boxes[order], scores[order], labels[order], bank.names, image.picture)

    def ground(
        self, image: EncodedSquare, trees: Mapping[str, Entity], reading: str, top_k: int, threshold: float
    ) -> dict[str, Detections]:
        """The boxes that the head means by each expression."""
        answers = {}
        for text, (boxes, scores) in zip(trees, self._boxes(image, list(trees)), strict=True):
            kept = (scores >= threshold).nonzero().flatten()[:top_k]
            answers[text] = answer(boxes[kept], scores[kept], torch.zeros_like(kept), (text,), image.picture)
        return answers

    def segment(self, image: EncodedSquare, expression: str, boxes: Tensor | None) -> np.ndarray:
        """``[1, H, W]`` bool: what an expression means, by heads with a mask branch."""
        width, height = image.size
        ((output, k),) = self._outputs(image, [expression])
        if output.pixels is None:
            raise UserError("This head has no mask branch: train one by a config with model.head.mask_branch=True.")
        return self.model.mask_of(output.pixels[k], image.scale, (height, width))[None]

    def explain(self, image: EncodedSquare, text: str) -> Explanation:
        """Masked cosine of each grid cell with a text under the towers, before the head, and the text's mask."""
        tokens, scale, (width, height) = image.tokens, image.scale, image.size
        with full_precision(self.device):
            told = self.model.text_tokens([text])
            cosine = paired_masked_cosine(tokens.dense.flatten(2).transpose(1, 2), told.embeds, told.masks)
        h, w = tokens.dense.shape[-2:]
        patch = self.model.towers.config.patch_size
        rows, columns = (max(1, round(n * s / patch)) for n, s in zip((height, width), scale[::-1], strict=True))
        mask: Tensor = torch.ones_like(told.embeds) if told.masks is None else told.masks
        return Explanation(cosine.view(h, w)[:rows, :columns].cpu().numpy(), mask[0].cpu().numpy(), text)

    def embed(self, image: EncodedSquare) -> tuple[Tensor, Tensor]:
        """The boxes that were given (default: the whole picture), and the towers' dense map pooled in them."""
        width, height = image.size
        boxes = torch.tensor([[0.0, 0, width, height]]) if image.given is None else image.given
        scale = boxes.new_tensor([*image.scale] * 2)
        rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes * scale], dim=1).to(self.device)
        return boxes, pool_regions(image.tokens.dense, rois, self.model.towers.config.patch_size)
