"""Trained grounding heads on single images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from smartclip_det.apis.answers import Detections, Explanation
from smartclip_det.apis.building import build_detector
from smartclip_det.apis.inputs import HeldImage, ImageLike, check_count, check_texts, check_threshold, load_image
from smartclip_det.core.errors import UserError
from smartclip_det.core.similarity import paired_masked_cosine
from smartclip_det.utils.devices import full_precision, resolve_device
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
    """

    tokens: ImageTokens
    scale: tuple[float, float]
    size: tuple[int, int]


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
        self._held: HeldImage[EncodedSquare] = HeldImage()

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
        """How answers are made, for their stamp."""
        return {"mask_mode": self.model.mask_mode, "towers": self.model.towers.checkpoint_hash}

    def set_image(self, image: ImageLike) -> EncodedSquare:
        """Encode an image and hold it for the queries of this thread; a call that fails leaves none.

        Args:
            image: path, PIL image (its EXIF orientation is applied) or ``[H, W, 3]`` uint8 RGB array.

        Raises:
            UserError: for a missing or unreadable file or an array of another shape.
        """
        self._held.set(None)
        encoded = self.encode_image(image)
        self._held.set(encoded)
        return encoded

    @torch.no_grad()
    def encode_image(self, image: ImageLike) -> EncodedSquare:
        """Encode an image, once for all expressions."""
        picture, side = Image.fromarray(load_image(image)), self.model.image_size
        square = pixels(fit_square(picture, side, self.fit)).to(self.device)
        with full_precision(self.device):
            tokens = self.model.image_tokens(square[None])
        return EncodedSquare(tokens, square_scale(picture.size, side, self.fit), picture.size)

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

    @overload
    def ground(self, expression: str, *, top_k: int = 1, threshold: float = 0.0,
               image: EncodedSquare | None = None) -> Detections: ...  # fmt: skip

    @overload
    def ground(self, expression: Sequence[str], *, top_k: int = 1, threshold: float = 0.0,
               image: EncodedSquare | None = None) -> list[Detections]: ...  # fmt: skip

    @torch.no_grad()
    def ground(
        self,
        expression: str | Sequence[str],
        *,
        top_k: int = 1,
        threshold: float = 0.0,
        image: EncodedSquare | None = None,
    ) -> Detections | list[Detections]:
        """The boxes that referring expressions mean, all in one go; the image is not encoded again.

        Args:
            expression: one text, or several.
            top_k: boxes of each expression at most; heads of one query have one.
            threshold: lowest probability that a box is meant; an expression that no box reaches has none.
            image: what :meth:`encode_image` gave; default: the image that this thread set.

        Returns:
            Detections best first, or a list of them for several expressions.

        Raises:
            UserError: for an empty expression, one over the token limit, or without an image.
        """
        texts, image = check_texts(expression, "expression"), self._held.get(image)
        top_k, threshold = check_count("top_k", top_k), check_threshold(threshold)
        width, height = image.size
        found = []
        for text, (output, k) in zip(texts, self._outputs(image, texts), strict=True):
            boxes, scores = self.model.boxes_of(output, k, image.scale, (height, width))
            kept = (scores >= threshold).nonzero().flatten()[:top_k]
            labels = np.zeros(len(kept), dtype=np.int64)
            found.append(Detections(boxes[kept].cpu().numpy(), scores[kept].cpu().numpy(), labels, (text,)))
        return found[0] if isinstance(expression, str) else found

    @torch.no_grad()
    def segment(self, expression: str, *, image: EncodedSquare | None = None) -> np.ndarray:
        """``[H, W]`` bool: what an expression means, by heads with a mask branch.

        Raises:
            UserError: for a head without one.
        """
        image = self._held.get(image)
        width, height = image.size
        ((output, k),) = self._outputs(image, check_texts(expression, "expression"))
        if output.pixels is None:
            raise UserError("This head has no mask branch: train one by a config with model.head.mask_branch=True.")
        return self.model.mask_of(output.pixels[k], image.scale, (height, width))

    @torch.no_grad()
    def explain(self, text: str, *, image: EncodedSquare | None = None) -> Explanation:
        """Masked cosine of each grid cell with a text under the towers, before the head, and the text's mask."""
        image = self._held.get(image)
        tokens, scale, (width, height) = image.tokens, image.scale, image.size
        with full_precision(self.device):
            told = self.model.text_tokens(check_texts(text, "text"))
            cosine = paired_masked_cosine(tokens.dense.flatten(2).transpose(1, 2), told.embeds, told.masks)
        h, w = tokens.dense.shape[-2:]
        patch = self.model.towers.config.patch_size
        rows, columns = (max(1, round(n * s / patch)) for n, s in zip((height, width), scale[::-1], strict=True))
        mask: Tensor = torch.ones_like(told.embeds) if told.masks is None else told.masks
        return Explanation(cosine.view(h, w)[:rows, :columns].cpu().numpy(), mask[0].cpu().numpy(), text)
