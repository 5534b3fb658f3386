"""SmartCLIPReferring: frozen towers and a trained :class:`FusionHead`, all sentences of an image in one pass.

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
    """Boxes, existence, similarity maps and masks of referring expressions (rec reference, section 6 (b))."""

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
        """Build.

        Args:
            towers: see ``towers.source.load_towers``; they stay frozen.
            head: options of :class:`FusionHead`; sizes that the towers fix are filled in.
            image_size: S; positions of the image tower are interpolated to it.
            out_indices: tapped layers, 0-based (CLIP-VG: 1, 4, 8 and 12 of ViT-B).
            dense_mode: last block of the dense map.
            mask_mode: of ``similarity.OWN_MASK_MODES``; all but ``hard`` are for ablations and controls.
            loss_weights: changes to ``set_losses.WEIGHTS``.
            text_cache: sentences whose frozen features are kept; 0 for none.
            max_boxes: boxes of a sentence at most in predictions.
            nms_iou: IoU over which the weaker box of a sentence goes.
            data_preprocessor: as for any MMEngine model.
            init_cfg: unused.

        Raises:
            UserError: for unknown modes, weights, or an image size that the patches do not divide.
        """
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
        return self.source.held[0]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Sentences kept on another device or in another precision are forgotten."""
        self._texts.clear()
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def image_tokens(self, images: Tensor) -> ImageTokens:
        """Tokens of ``[B, 3, S, S]`` uint8 or float pixels in 0..255."""
        with frozen_precision(images.device):
            found = self.towers.image_tower.features(
                (images.float() - self.mean) / self.std, taps=self.out_indices, dense_mode=self.dense_mode
            )
        # Taps of finer strides are averaged to the grid of the last one.
        grid = found.dense.shape[-2:]
        taps = [t if t.shape[-2:] == grid else functional.adaptive_avg_pool2d(t, grid) for t in found.taps]
        return ImageTokens(torch.cat(taps, dim=1).float(), found.dense.float())

    @torch.no_grad()
    def text_tokens(self, sentences: Sequence[str]) -> TextTokens:
        """Tokens of K sentences, those seen before from memory.

        Raises:
            UserError: for an empty sentence or one over the token limit.
        """
        if not sentences or not all(s.strip() for s in sentences):
            raise UserError("A referring expression is empty.")
        kept = {s: self._texts[s] for s in dict.fromkeys(sentences) if s in self._texts}
        new = [s for s in dict.fromkeys(sentences) if s not in kept]
        for start in range(0, len(new), 256):
            part = new[start : start + 256]
            found = encode_texts(self.towers, part)
            assert found.states is not None
            # Read on the host, where the ids are.
            ends = (found.tokens.argmax(dim=1) + 1).tolist()
            for n, s in enumerate(part):
                kept[s] = (found.states[n, : ends[n]].float().clone(), found.embeds[n], found.mask_probs[n])
        if self.text_cache:
            self._texts.update({s: kept[s] for s in new})
            while len(self._texts) > self.text_cache:
                self._texts.popitem(last=False)
        states = pad_sequence([kept[s][0] for s in sentences], batch_first=True)
        lengths = torch.tensor([len(kept[s][0]) for s in sentences], device=states.device)
        keep = torch.arange(states.shape[1], device=states.device) < lengths[:, None]
        embeds, probs = (torch.stack([kept[s][n] for s in sentences]) for n in (1, 2))
        masks = resolve_masks(probs, self.mask_mode, sentences)
        return TextTokens(states, keep, embeds, masks)

    def ground(self, images: Tensor, sentences: Sequence[Sequence[str]]) -> GroundingOutput:
        """What the head says of all sentences of ``[B, 3, S, S]`` images; sentences follow each other by image."""
        flat = [s for mine in sentences for s in mine]
        index = torch.tensor([b for b, mine in enumerate(sentences) for _ in mine], device=self.mean.device)
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
            raise UserError("SmartCLIPReferring needs data samples: they hold the sentences.")
        output = self.ground(images, [s.sentences for s in data_samples])
        if mode == "tensor":
            return output
        if mode == "predict":
            return self._predict(output, data_samples)
        if mode != "loss":
            raise UserError(f"mode must be loss, predict or tensor; given {mode!r}.")
        boxes = [b for s in data_samples for b in s.boxes]
        # One copy to the device for all sentences.
        shares = box_convert(torch.cat(boxes).to(images.device), "xyxy", "cxcywh") / self.image_size
        targets = shares.split([len(b) for b in boxes])
        masks = None
        if self.head.upscale is not None:
            masks = torch.cat([s.masks for s in data_samples]).to(images.device)
        return grounding_losses(output, targets, self.loss_weights, masks)

    def _predict(self, output: GroundingOutput, samples: Sequence[BaseDataElement]) -> list[BaseDataElement]:
        """Boxes in pixels of the original image, best first; the letterbox is undone."""
        frames = [(s.scale, s.ori_shape) for s in samples for _ in s.sentence_ids]
        answers = enumerate(self.boxes_of(output, frames))
        for s in samples:
            found = []
            for sentence_id in s.sentence_ids:
                k, (boxes, scores) = next(answers)
                one = {"id": sentence_id, "boxes": boxes.tolist(), "scores": scores.tolist()}
                if output.pixels is not None:
                    one["mask"] = self.mask_of(output.pixels[k], s.scale, s.ori_shape)
                found.append(one)
            s.set_metainfo({"grounded": found})
        return list(samples)

    def boxes_of(
        self, output: GroundingOutput, frames: Sequence[tuple[tuple[float, float], tuple[int, int]]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Boxes of each sentence in pixels of its original image, and their probabilities, best first after NMS.

        Args:
            output: of the head, for K sentences.
            frames: for each sentence of its image the scale (square over image pixels, x and y), height and width.

        Returns:
            For each sentence ``[N, 4]`` xyxy, cut at the image's border, and ``[N]``, on the host: one copy for all.
        """
        corners = box_convert(output.boxes.float(), "cxcywh", "xyxy") * self.image_size
        told = torch.cat([corners, output.exists.float().sigmoid().unsqueeze(-1)], dim=-1).cpu()
        answers = []
        for row, (scale, (height, width)) in zip(told, frames, strict=True):
            boxes = row[:, :4] / row.new_tensor([*scale, *scale])
            boxes = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))
            order = nms(boxes, row[:, 4], self.nms_iou)[: self.max_boxes]
            answers.append((boxes[order], row[order, 4]))
        return answers

    def mask_of(self, logits: Tensor, scale: tuple[float, float], size: tuple[int, int]) -> Any:
        """``[H, W]`` bool of the original image, from a row of ``GroundingOutput.pixels``; see :meth:`boxes_of`."""
        height, width = size
        grown = torch.nn.functional.interpolate(
            logits[None, None], (self.image_size, self.image_size), mode="bilinear", align_corners=False
        )
        inside = grown[..., : max(1, round(height * scale[1])), : max(1, round(width * scale[0]))]
        whole = torch.nn.functional.interpolate(inside, (height, width), mode="bilinear", align_corners=False)
        return (whole[0, 0] > 0).cpu().numpy()
