"""SmartCLIPReferring: frozen towers with a trained :class:`FusionHead`; all sentences of an image in one pass.

Shape letters: B images, K sentences, S side of the square, D joint embedding.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert, nms

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.similarity import OWN_MASK_MODES, resolve_masks
from smartclip_det.models.grounding.fusion_head import FusionHead, GroundingOutput, ImageTokens, TextTokens
from smartclip_det.models.grounding.set_losses import WEIGHTS, grounding_losses
from smartclip_det.models.towers.frozen import FrozenTowers
from smartclip_det.models.towers.text_encoding import encode_texts
from smartclip_det.models.towers.tokenizer import image_statistics
from smartclip_det.utils.devices import frozen_precision


@MODELS.register_module()
class SmartCLIPReferring(BaseModel):
    """Boxes, existence, similarity maps and masks of referring expressions, on frozen towers.

    Args:
        towers: see ``towers.source.load_towers``; frozen.
        head: options of :class:`FusionHead`; sizes given by the towers are filled in.
        image_size: S; the position embeddings of the image tower are interpolated to it.
        out_indices: tapped layers, 0-based (CLIP-VG taps layers 1, 4, 8 and 12 of ViT-B).
        dense_mode: mode of the last block for the dense map.
        mask_mode: one of ``similarity.OWN_MASK_MODES``; modes other than ``hard`` are for ablations and controls.
        loss_weights: overrides of ``set_losses.WEIGHTS``.
        text_cache: number of sentences whose frozen features are cached; 0 disables the cache.
        max_boxes: maximum number of predicted boxes per sentence.
        nms_iou: IoU above which the lower-scored box of a sentence is suppressed.
        data_preprocessor: as for any MMEngine model.
        init_cfg: unused.

    Raises:
        UserError: for unknown modes or weights, or an image size that is not a multiple of the patch size.
    """

    def __init__(
        self,
        towers: Mapping[str, Any],
        head: Mapping[str, Any],
        *,
        image_size: int = 384,
        out_indices: Sequence[int] = (0, 3, 7, 11),
        dense_mode: str = "value",
        mask_mode: str = "hard",
        loss_weights: Mapping[str, float] | None = None,
        text_cache: int = 20_000,
        max_boxes: int = 10,
        nms_iou: float = 0.7,
        data_preprocessor: Any = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=None)
        self.mask_mode = check_choice("mask_mode", mask_mode, OWN_MASK_MODES)
        for key in loss_weights or {}:
            check_choice("loss weight", key, WEIGHTS)
        self.loss_weights, self.max_boxes, self.nms_iou = dict(loss_weights or {}), max_boxes, nms_iou
        self.source = FrozenTowers(towers)
        config = self.towers.config
        if image_size % config.patch_size:
            raise UserError(f"image_size must be a multiple of the patch size {config.patch_size}; given {image_size}.")
        self.image_size, self.dense_mode = image_size, check_choice("dense_mode", dense_mode, self.towers.dense_modes)
        self.out_indices = tuple(out_indices)
        channels = self.towers.image_tower.tap_channels
        self.head = FusionHead(
            channels=sum(channels[i] for i in self.out_indices),
            text_width=config.text_width,
            embed_dim=config.embed_dim,
            grid=image_size // config.patch_size,
            text_length=config.context_length,
            **head,
        )
        self._texts: OrderedDict[str, tuple[Tensor, Tensor, Tensor]] = OrderedDict()
        self.text_cache = text_cache
        mean, std = image_statistics()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255, persistent=False)

    @property
    def towers(self) -> Any:
        """The frozen towers."""
        return self.source.unregistered[0]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Also clear the text cache, whose tensors would be on another device or in another dtype."""
        self._texts.clear()
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def image_tokens(self, images: Tensor) -> ImageTokens:
        """Tokens of ``[B, 3, S, S]`` uint8 or float pixels in [0, 255]."""
        with frozen_precision(images.device):
            output = self.towers.image_tower.features(
                (images.float() - self.mean) / self.std, taps=self.out_indices, dense_mode=self.dense_mode
            )
        # Taps with finer strides are averaged to the grid of the last one.
        grid = output.dense.shape[-2:]
        taps = [t if t.shape[-2:] == grid else functional.adaptive_avg_pool2d(t, grid) for t in output.taps]
        return ImageTokens(torch.cat(taps, dim=1).float(), output.dense.float())

    @torch.no_grad()
    def text_tokens(self, sentences: Sequence[str]) -> TextTokens:
        """Tokens of K sentences, from the cache if possible.

        Raises:
            UserError: for an empty sentence or one over the token limit.
        """
        if not sentences or not all(s.strip() for s in sentences):
            raise UserError("A referring expression is empty.")
        features = {s: self._texts[s] for s in dict.fromkeys(sentences) if s in self._texts}
        new = [s for s in dict.fromkeys(sentences) if s not in features]
        for start in range(0, len(new), 256):
            part = new[start : start + 256]
            encoded = encode_texts(self.towers, part)
            assert encoded.states is not None
            # Token ids are on the host, so reading them does not synchronise.
            ends = (encoded.tokens.argmax(dim=1) + 1).tolist()
            for n, s in enumerate(part):
                features[s] = (encoded.states[n, : ends[n]].float().clone(), encoded.embeds[n], encoded.mask_probs[n])
        if self.text_cache:
            self._texts.update({s: features[s] for s in new})
            while len(self._texts) > self.text_cache:
                self._texts.popitem(last=False)
        states = pad_sequence([features[s][0] for s in sentences], batch_first=True)
        lengths = torch.tensor([len(features[s][0]) for s in sentences], device=states.device)
        keep = torch.arange(states.shape[1], device=states.device) < lengths[:, None]
        embeds, probs = (torch.stack([features[s][n] for s in sentences]) for n in (1, 2))
        masks = resolve_masks(probs, self.mask_mode, sentences)
        return TextTokens(states, keep, embeds, masks)

    def ground(self, images: Tensor, sentences: Sequence[Sequence[str]]) -> GroundingOutput:
        """Head output for all sentences of ``[B, 3, S, S]`` images, concatenated over images."""
        flat = [s for group in sentences for s in group]
        index = torch.tensor([b for b, group in enumerate(sentences) for _ in group], device=self.mean.device)
        return self.head(self.image_tokens(images), self.text_tokens(flat), index)

    def forward(
        self,
        inputs: Sequence[Tensor] | Tensor,
        data_samples: Sequence[BaseDataElement] | None = None,
        mode: str = "tensor",
    ) -> Any:
        """Losses (``loss``), data samples with ``grounded`` (``predict``), or the raw output (``tensor``)."""
        images = torch.stack(list(inputs)).to(self.mean.device)
        if data_samples is None:
            raise UserError("SmartCLIPReferring needs data samples, which hold the sentences.")
        output = self.ground(images, [s.sentences for s in data_samples])
        if mode == "tensor":
            return output
        if mode == "predict":
            return self._predict(output, data_samples)
        if mode != "loss":
            raise UserError(f"mode must be loss, predict or tensor; given {mode!r}.")
        boxes = [b for s in data_samples for b in s.boxes]
        # One host-to-device copy for all sentences.
        relative = box_convert(torch.cat(boxes).to(images.device), "xyxy", "cxcywh") / self.image_size
        targets = relative.split([len(b) for b in boxes])
        masks = None
        if self.head.upscale is not None:
            masks = torch.cat([s.masks for s in data_samples]).to(images.device)
        return grounding_losses(output, targets, self.loss_weights, masks)

    def _predict(self, output: GroundingOutput, samples: Sequence[BaseDataElement]) -> list[BaseDataElement]:
        """Boxes in pixels of the original image (the letterbox is undone), best first."""
        frames = [(s.scale, s.ori_shape) for s in samples for _ in s.sentence_ids]
        answers = enumerate(self.boxes_of(output, frames))
        for s in samples:
            grounded = []
            for sentence_id in s.sentence_ids:
                k, (boxes, scores) = next(answers)
                one = {"id": sentence_id, "boxes": boxes.tolist(), "scores": scores.tolist()}
                if output.pixels is not None:
                    one["mask"] = self.mask_of(output.pixels[k], s.scale, s.ori_shape)
                grounded.append(one)
            s.set_metainfo({"grounded": grounded})
        return list(samples)

    def boxes_of(
        self, output: GroundingOutput, frames: Sequence[tuple[tuple[float, float], tuple[int, int]]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Boxes of each sentence in pixels of its original image, and their probabilities, best first after NMS.

        Args:
            output: head output for K sentences.
            frames: for each sentence, the scale of its image (square over image pixels, x and y), height and width.

        Returns:
            For each sentence ``[N, 4]`` xyxy, clipped to the image, and ``[N]``; on the host, after a single copy.
        """
        corners = box_convert(output.boxes.float(), "cxcywh", "xyxy") * self.image_size
        rows = torch.cat([corners, output.exists.float().sigmoid().unsqueeze(-1)], dim=-1).cpu()
        answers = []
        for row, (scale, (height, width)) in zip(rows, frames, strict=True):
            boxes = row[:, :4] / row.new_tensor([*scale, *scale])
            boxes = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))
            order = nms(boxes, row[:, 4], self.nms_iou)[: self.max_boxes]
            answers.append((boxes[order], row[order, 4]))
        return answers

    def mask_of(self, logits: Tensor, scale: tuple[float, float], size: tuple[int, int]) -> Any:
        """``[H, W]`` bool in the original image, from a row of ``GroundingOutput.pixels``; see :meth:`boxes_of`."""
        height, width = size
        square = torch.nn.functional.interpolate(
            logits[None, None], (self.image_size, self.image_size), mode="bilinear", align_corners=False
        )
        inside = square[..., : max(1, round(height * scale[1])), : max(1, round(width * scale[0]))]
        original = torch.nn.functional.interpolate(inside, (height, width), mode="bilinear", align_corners=False)
        return (original[0, 0] > 0).cpu().numpy()
