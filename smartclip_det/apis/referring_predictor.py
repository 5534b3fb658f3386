"""Trained grounding heads on single images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from smartclip_det.apis.building import build_detector
from smartclip_det.apis.predictor import Detections, Explanation, ImageLike, load_image
from smartclip_det.core.errors import UserError
from smartclip_det.core.similarity import paired_masked_cosine
from smartclip_det.utils.devices import resolve_device
from smartclip_det.utils.images import fit_square, pixels, square_scale

if TYPE_CHECKING:
    from smartclip_det.models.grounding.fusion_head import GroundingOutput, ImageTokens

#: Sentences in one pass of the head: each has its own copy of the image's tokens.
CHUNK = 64


class ReferringPredictor:
    """Ground expressions with a trained head: no proposals, and "none" as an answer.

    >>> predictor = ReferringPredictor.from_config("config.py", "epoch_110.pth")      # doctest: +SKIP
    >>> predictor.set_image("street.jpg")                                              # doctest: +SKIP
    >>> predictor.ground(["the dog left of the bench", "a unicorn"], threshold=0.5)    # doctest: +SKIP
    """

    def __init__(self, model: Any, fit: str = "pad") -> None:
        """Build from parts; :meth:`from_config` is the usual way.

        Args:
            model: a :class:`SmartCLIPReferring`.
            fit: how images become squares: ``pad`` or ``squash``, as in training.
        """
        self.model, self.fit = model.eval(), fit
        self._image: tuple[ImageTokens, tuple[float, float], tuple[int, int]] | None = None

    @staticmethod
    def from_config(
        config: str | Path, checkpoint: str | Path | None = None, *, device: str = "auto",
        cfg_options: Mapping[str, Any] | None = None,
    ) -> ReferringPredictor:  # fmt: skip
        """Build from a config of a :class:`SmartCLIPReferring` and its checkpoint.

        Args:
            config: config file.
            checkpoint: weights; None for a random head (for tests only).
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
            cfg_options: overrides.

        Raises:
            UserError: for missing files, configs of other models, or a device that is not there.
        """
        cfg, model = build_detector(config, checkpoint, cfg_options, only="SmartCLIPReferring")
        return ReferringPredictor(model.to(resolve_device(device)), cfg.test_dataloader.dataset.get("fit", "pad"))

    @property
    def device(self) -> torch.device:
        """Where the head is."""
        return self.model.mean.device

    @property
    def protocol(self) -> dict[str, Any]:
        """What belongs into the stamp of its answers."""
        return {"mask_mode": self.model.mask_mode, "towers": self.model.towers.checkpoint_hash}

    @torch.no_grad()
    def set_image(self, image: ImageLike) -> None:
        """Encode an image, once for all expressions.

        Args:
            image: path, PIL image (its EXIF orientation is applied) or ``[H, W, 3]`` uint8 RGB array.

        Raises:
            UserError: for a missing or unreadable file or an array of another shape.
        """
        picture, side = Image.fromarray(load_image(image)), self.model.image_size
        square = pixels(fit_square(picture, side, self.fit)).to(self.device)
        self._image = self.model.image_tokens(square[None]), square_scale(picture.size, side, self.fit), picture.size

    def _encoded(self) -> tuple[ImageTokens, tuple[float, float], tuple[int, int]]:
        if self._image is None:
            raise UserError("No image is set. Call set_image(image) before ground, segment or explain.")
        return self._image

    def _outputs(self, texts: Sequence[str]) -> list[tuple[GroundingOutput, int]]:
        """For each text, the output that holds it, and its row."""
        tokens, out = self._encoded()[0], []
        for start in range(0, len(texts), CHUNK):
            part = texts[start : start + CHUNK]
            index = torch.zeros(len(part), dtype=torch.long, device=self.device)
            found = self.model.head(tokens, self.model.text_tokens(part), index)
            out += [(found, k) for k in range(len(part))]
        return out

    @overload
    def ground(self, expression: str, *, top_k: int = 1, threshold: float = 0.0) -> Detections: ...

    @overload
    def ground(self, expression: Sequence[str], *, top_k: int = 1, threshold: float = 0.0) -> list[Detections]: ...

    @torch.no_grad()
    def ground(
        self, expression: str | Sequence[str], *, top_k: int = 1, threshold: float = 0.0
    ) -> Detections | list[Detections]:
        """The boxes that referring expressions mean, all in one go; the image is not encoded again.

        Args:
            expression: one text, or several.
            top_k: boxes of each expression at most; heads of one query have one.
            threshold: lowest probability that a box is meant; an expression that no box reaches has none.

        Returns:
            Detections best first, or a list of them for several expressions.

        Raises:
            UserError: for an empty expression, one over the token limit, or without an image.
        """
        _, scale, (width, height) = self._encoded()
        texts = [expression] if isinstance(expression, str) else list(expression)
        if not texts:
            raise UserError("No expression is given.")
        found = []
        for text, (output, k) in zip(texts, self._outputs(texts), strict=True):
            boxes, scores = self.model.boxes_of(output, k, scale, (height, width))
            kept = (scores >= threshold).nonzero().flatten()[:top_k]
            labels = np.zeros(len(kept), dtype=np.int64)
            found.append(Detections(boxes[kept].cpu().numpy(), scores[kept].cpu().numpy(), labels, (text,)))
        return found[0] if isinstance(expression, str) else found

    @torch.no_grad()
    def segment(self, expression: str) -> np.ndarray:
        """``[H, W]`` bool: what an expression means, by heads with a mask branch.

        Raises:
            UserError: for a head without one.
        """
        _, scale, (width, height) = self._encoded()
        ((output, k),) = self._outputs([expression])
        if output.pixels is None:
            raise UserError("This head has no mask branch: train one by a config with model.head.mask_branch=True.")
        return self.model.mask_of(output.pixels[k], scale, (height, width))

    @torch.no_grad()
    def explain(self, text: str) -> Explanation:
        """Masked cosine of each grid cell with a text under the towers, before the head, and the text's mask."""
        tokens, scale, (width, height) = self._encoded()
        told = self.model.text_tokens([text])
        cosine = paired_masked_cosine(tokens.dense.flatten(2).transpose(1, 2), told.embeds, told.masks)
        h, w = tokens.dense.shape[-2:]
        patch = self.model.towers.config.patch_size
        rows, columns = (max(1, round(n * s / patch)) for n, s in zip((height, width), scale[::-1], strict=True))
        mask: Tensor = torch.ones_like(told.embeds) if told.masks is None else told.masks
        return Explanation(cosine.view(h, w)[:rows, :columns].cpu().numpy(), mask[0].cpu().numpy(), text)
