"""Image-caption alignment (SmartCLIP, arXiv 2507.22264; CLIP and Long-CLIP by config).

Shape letters: B images, D joint embedding, C classes, S side of the input in pixels, h w grid cells.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from smartclip_det.core.contrastive import principal_part
from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.mask_modes import RETRIEVAL_MODES
from smartclip_det.core.similarity import masked_cosine, resolve_masks
from smartclip_det.core.text_bank import TextBank
from smartclip_det.models.alignment.distillation import RegionDistillation
from smartclip_det.models.alignment.region_contrast import RegionContrast
from smartclip_det.models.losses.alignment_loss import AlignmentLoss, bound_scale
from smartclip_det.models.towers.low_rank import add_low_rank
from smartclip_det.models.towers.source import load_towers
from smartclip_det.models.towers.text_batch import describe_texts, pad_texts, texts_to
from smartclip_det.models.towers.transformer import compile_blocks
from smartclip_det.models.towers.vision_transformer import DENSE_MODES

#: With compiled blocks, texts are padded to a multiple of this many tokens.
COMPILED_LENGTHS = 64
#: Loss terms that are also applied to the mean of the dense map.
_ALIGNED = ("loss_sidm", "loss_dism", "loss_sigmoid")


@dataclass
class SeenImages:
    """Image features that the losses need, for B images.

    Attributes:
        pooled: ``[B, D]``, not normalised.
        patch_mean: ``[B, D]`` mean of the dense map, or None.
        dense: ``[B', D, h, w]`` dense maps of the first images, or None.
    """

    pooled: Tensor
    patch_mean: Tensor | None
    dense: Tensor | None


@MODELS.register_module()
class SmartCLIPAlignment(BaseModel):
    """Towers with the alignment loss and optional losses on dense features.

    ``towers`` are saved under their own names with ``meta['tower_config']`` (:class:`TowerCheckpointHook`), so every
    other part of the package can load a checkpoint of this model as towers.

    Args:
        towers: source of the initial weights, see ``towers.source.load_towers``.
        loss: options of :class:`AlignmentLoss`; None: the published loss.
        component_matching: Long-CLIP's primary component matching: all texts of an image but the first are matched
            with the image vectors projected on this many principal directions of the local batch; 0: off.
        dense_weight: weight of the same loss on the mean of the dense map instead of the pooled vector, so that
            patches are trained to match texts as well.
        dense_mode: mode of the last block for that dense map.
        distillation: options of :class:`RegionDistillation`; None: off.
        region_contrast: options of :class:`RegionContrast`; None: off. Needs ``regions`` in the dataset.
        low_rank: options of ``add_low_rank``: the towers are frozen except for low-rank updates (and mask network).
        micro_batch: number of images (and texts) encoded at a time; each part is re-encoded in the backward pass,
            so only the activations of one part are in memory. The loss is exactly that of the full batch. 0: off.
        text_chunks: number of chunks of texts of similar length, encoded one by one; reduces padding.
        half_residuals: under autocast, keep tokens between blocks in its precision instead of fp32: less memory
            traffic, but every addition is rounded.
        initial_scale: initial value of a learned scale; 0: that of the towers.
        checkpointing: recompute transformer blocks in the backward pass.
        compile: ``torch.compile`` backend for transformer blocks in training (``inductor``); empty: not compiled.
        length_multiple: pad texts to a multiple of this many tokens, so that compiled blocks see few lengths; 0: 64
            with ``compile``, otherwise no padding. Texts with ``mask_pad='include'`` all have the same length.
        data_preprocessor: MMEngine's; None: uint8 pixels are normalised when they are encoded.
        init_cfg: unused; weights come from ``towers``.
    """

    def __init__(
        self,
        towers: Mapping[str, Any],
        loss: Mapping[str, Any] | None = None,
        component_matching: int = 0,
        dense_weight: float = 0.0,
        dense_mode: str = "value",
        distillation: Mapping[str, Any] | None = None,
        region_contrast: Mapping[str, Any] | None = None,
        low_rank: Mapping[str, Any] | None = None,
        micro_batch: int = 0,
        text_chunks: int = 1,
        checkpointing: bool = False,
        compile: str = "",
        length_multiple: int = 0,
        half_residuals: bool = False,
        initial_scale: float = 0.0,
        data_preprocessor: Any = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor or {"type": "BaseDataPreprocessor", "non_blocking": True})
        self.towers = load_towers(towers)
        self.loss = AlignmentLoss(**(loss or {}))
        for name, value, low in (
            ("micro_batch", micro_batch, 0),
            ("text_chunks", text_chunks, 1),
            ("component_matching", component_matching, 0),
            ("length_multiple", length_multiple, 0),
        ):
            if not isinstance(value, int) or value < low:
                raise UserError(f"model.{name} must be a whole number of at least {low}; given {value!r}.")
        self.component_matching, self.micro_batch, self.text_chunks = component_matching, micro_batch, text_chunks
        self.dense_weight, self.dense_mode = dense_weight, check_choice("dense_mode", dense_mode, DENSE_MODES)
        if (micro_batch or checkpointing) and not self.towers.image_tower.recomputable:
            raise UserError(
                "The image tower has batch norm: its statistics would differ for parts of a batch, and recomputation "
                "would update them twice. Set model.micro_batch=0 and model.checkpointing=False."
            )
        self.distillation = None if distillation is None else RegionDistillation(**distillation)
        self.region_contrast = None if region_contrast is None else RegionContrast(**region_contrast)
        if self.distillation is not None:
            self.distillation.remember(self.towers.image_tower)
        if low_rank is not None:
            add_low_rank([self.towers.image_tower, self.towers.text_tower], **low_rank)
        self.towers.image_tower.checkpointing = self.towers.text_tower.checkpointing = checkpointing
        for part in (self.towers.image_tower, self.towers.text_tower, self.towers.mask_network):
            if part is not None:
                part.half_residuals = half_residuals
        self.length_multiple = length_multiple or (COMPILED_LENGTHS if compile else 1)
        if compile:
            compile_blocks(self.towers, compile)
        if initial_scale > 0:
            self.towers.logit_scale.data.fill_(math.log(initial_scale))
        if self.loss.learns_scale and (before := bound_scale(self.towers.logit_scale)) is not None:
            after = float(self.towers.logit_scale)
            print_log(
                f"logit_scale is a logarithm; {before:g} is outside [0, ln 100] and was set to {after:.4f}.",
                "current",
                logging.WARNING,
            )
        self._banks: dict[str, TextBank] = {}
        self._vocabularies: dict[tuple[str, torch.device], tuple[TextBank, dict[str, Tensor | None]]] = {}
        # Per device; not buffers, which DeepSpeed would round to bf16.
        self._statistics: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._choose_trained(towers)

    def _choose_trained(self, source: Mapping[str, Any]) -> None:
        """Freeze parameters that no loss reaches: DDP waits for the gradients of all trained ones."""
        self.towers.logit_scale.requires_grad_(self.loss.learns_scale)
        if self.towers.mask_network is not None:
            self.towers.mask_network.requires_grad_(self.loss.mask_mode != "off")
        elif self.loss.mask_mode != "off":
            raise UserError(
                f"mask_mode={self.loss.mask_mode!r} needs towers with a mask network; {source} have none. Use an "
                "architecture with one (SmartCLIP-...), add one with towers.mask_layers=1, or set "
                "mask_mode='off'."
            )
        self._choose_saliency(source)

    def _choose_saliency(self, source: Mapping[str, Any]) -> None:
        """Train the saliency weights of cells only if a loss uses the dense map."""
        saliency = self.towers.image_tower.saliency
        if not self.towers.config.saliency or saliency is None:
            return
        learned = bool(self.dense_weight) or self.distillation is not None or self.region_contrast is not None
        if source.get("saliency") and not learned:
            raise UserError(
                "towers.saliency=True is trained through the dense map, which no loss uses here. Set dense_weight, "
                "distillation or region_contrast, or remove saliency."
            )
        saliency.requires_grad_(learned)
        if not learned:
            print_log("Saliency weights are frozen: no loss uses the dense map.", "current")

    def init_weights(self) -> None:
        """No-op: weights were loaded with the towers."""

    def set_text_banks(self, banks: Mapping[str, TextBank]) -> None:
        """Set the vocabularies, by name, that :meth:`forward` scores images against in ``predict`` mode."""
        self._banks = dict(banks)
        self._vocabularies.clear()

    def forward(
        self,
        inputs: Tensor,
        data_samples: Sequence[BaseDataElement] | None = None,
        mode: str = "tensor",
        texts: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one batch.

        Args:
            inputs: ``[B, 3, S, S]``: uint8 or normalised pixels.
            data_samples: for ``loss`` each with ``drawn_captions`` (or ``drawn_tokens``), the same number for all; for
                ``predict`` with ``captions``.
            mode: ``loss`` (dict of losses), ``predict`` (see :meth:`predict`), ``tensor`` (``[B, D]`` vectors).
            texts: for ``loss``, see ``text_batch.pad_texts``; None: built from ``data_samples``.

        Raises:
            UserError: for another mode, or samples without the fields that the mode needs.
        """
        if mode == "tensor":
            return self.towers.encode_image(self.normalised(inputs))
        if data_samples is None or mode not in ("loss", "predict"):
            raise UserError(f"mode must be loss or predict with data_samples, or tensor; given {mode!r}.")
        return self._losses(inputs, data_samples, texts) if mode == "loss" else self.predict(inputs, data_samples)

    def normalised(self, inputs: Tensor) -> Tensor:
        """Normalise uint8 pixels; other dtypes are assumed to be normalised."""
        if inputs.dtype != torch.uint8:
            return inputs
        if inputs.device not in self._statistics:
            mean, std = (torch.tensor(v, device=inputs.device).view(3, 1, 1) for v in self.towers.image_statistics())
            self._statistics[inputs.device] = mean, std
        mean, std = self._statistics[inputs.device]
        return (inputs.float() / 255 - mean) / std

    def _losses(
        self, inputs: Tensor, data_samples: Sequence[BaseDataElement], texts: Mapping[str, Any] | None
    ) -> dict[str, Tensor]:
        batch = self._texts(data_samples, inputs.device) if texts is None else texts
        sets = len(batch["lengths"]) // len(inputs)
        seen = self._see(inputs)
        read = self._read(batch)
        losses = self._contrast(seen.pooled, *read, sets)
        if seen.patch_mean is not None:
            dense = self._contrast(seen.patch_mean, *read, sets)
            losses.update({f"{k}_dense": self.dense_weight * v for k, v in dense.items() if k in _ALIGNED})
        if self.distillation is not None:
            assert seen.dense is not None
            pixels = self.normalised(inputs[: len(seen.dense)])
            losses.update(self.distillation(self.towers.image_tower, pixels, seen.dense))
        if self.region_contrast is not None:
            assert seen.dense is not None
            losses.update(self._contrast_regions(self.region_contrast, seen.dense, data_samples))
        # Captions over the context length are truncated, as in the released training; log how many reach the limit.
        limit = self.towers.config.context_length
        losses["texts_at_limit"] = (batch["tokens"].argmax(dim=1) == limit - 1).float().mean()
        return losses

    def _texts(self, data_samples: Sequence[BaseDataElement], device: torch.device) -> dict[str, Any]:
        """Text batch like that of ``caption_batch``, for samples that come without one: set by set."""
        if "drawn_tokens" in data_samples[0]:
            rows = zip(*(s.drawn_tokens for s in data_samples), strict=True)
            return texts_to(pad_texts([t for one in rows for t in one]), device)
        captions = zip(*(s.drawn_captions for s in data_samples), strict=True)
        return self._tokenized([t for one in captions for t in one], device)

    def _tokenized(self, texts: Sequence[str], device: torch.device) -> dict[str, Any]:
        return texts_to(describe_texts(self.towers.tokenize(texts, truncate=True)), device)

    def _read(self, texts: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Text vectors and mask logits ``[K, D]``, encoded in chunks."""
        tokens, limit = texts["tokens"], self.towers.config.context_length
        if tokens.shape[1] > limit:
            raise UserError(
                f"The dataset yields {tokens.shape[1]} tokens but the towers take {limit}: set the dataset's "
                "context_length to theirs, or towers.stretch=True."
            )
        recompute = 0 < self.micro_batch < len(tokens)
        parts = max(-(-len(tokens) // self.micro_batch) if recompute else 1, self.text_chunks)
        return self.towers.forward_text_by_length(
            tokens,
            parts,
            recompute=recompute,
            lengths=texts["lengths"],
            order=(texts["order"], texts["back"]),
            multiple=self.length_multiple,
        )

    def _see(self, inputs: Tensor) -> SeenImages:
        """Image features, encoded in micro-batches."""
        terms = [t.images for t in (self.distillation, self.region_contrast) if t is not None]
        dense_images = max(terms, default=0)
        mode = self.dense_mode if self.dense_weight or dense_images else None

        def see(pixels: Tensor, keep: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
            out = self.towers.image_tower.features(self.normalised(pixels), dense_mode=mode, pooled=True)
            assert out.pooled is not None
            mean = out.dense.flatten(2).mean(dim=2) if self.dense_weight and out.dense is not None else None
            return out.pooled, mean, out.dense[:keep] if keep and out.dense is not None else None

        size = self.micro_batch or len(inputs)
        parts = []
        for start in range(0, len(inputs), size):
            part = (inputs[start : start + size], min(max(dense_images - start, 0), size))
            parts.append(checkpoint(see, *part, use_reentrant=False) if size < len(inputs) else see(*part))
        pooled, means, maps = ([p for p in column if p is not None] for column in zip(*parts, strict=True))
        return SeenImages(torch.cat(pooled), torch.cat(means) if means else None, torch.cat(maps) if maps else None)

    def _contrast(self, images: Tensor, embeds: Tensor, logits: Tensor | None, sets: int) -> dict[str, Tensor]:
        """Losses of ``[B, D]`` image vectors, averaged over the sets of B captions."""
        masks = [None] * sets if logits is None else logits.chunk(sets)
        parts = []
        for n, (own, mask_logits) in enumerate(zip(embeds.chunk(sets), masks, strict=True)):
            matched = principal_part(images, self.component_matching) if n and self.component_matching else images
            parts.append(self.loss(matched, own, mask_logits, self.towers.logit_scale))
        return {k: torch.stack([p[k] for p in parts]).mean() for k in parts[0]}

    def _contrast_regions(
        self, term: RegionContrast, dense: Tensor, data_samples: Sequence[BaseDataElement]
    ) -> dict[str, Tensor]:
        if "region_texts" not in data_samples[0]:
            raise UserError("region_contrast needs regions=dict(file=...) in the training dataset.")
        region_texts = [s.region_texts for s in data_samples]
        texts = term.texts(region_texts)
        if not texts:
            return term.nothing(dense)
        embeds, logits = self._read(self._tokenized(texts, dense.device))
        return term(
            dense,
            [s.region_boxes for s in data_samples],
            region_texts,
            embeds,
            self.loss.masks(logits),
            self.towers.image_tower.patch_size,
        )

    @torch.no_grad()
    def predict(self, inputs: Tensor, data_samples: Sequence[BaseDataElement]) -> list[BaseDataElement]:
        """Features of each image and its captions, for retrieval and zero-shot evaluation.

        Returns:
            The samples with ``image_embed [D]``; ``text_features``: for each kind of caption a list of (vector ``[D]``,
            mask ``[D]``); ``presence_scores``: for each active vocabulary cosines ``[C]`` by mask mode.
        """
        images = self.towers.encode_image(self.normalised(inputs))
        scores = {}
        for name in self._banks:
            bank, masks = self._vocabulary(name, images.device)
            scores[name] = {
                mode: masked_cosine(images, bank.embeds, m, text_norm=self.loss.text_norm).cpu()
                for mode, m in masks.items()
            }
        texts = [t for s in data_samples for kind in s.captions.values() for t in kind]
        features = self._encode_unique(texts)
        vectors = images.float().cpu()
        for i, sample in enumerate(data_samples):
            sample.set_field(vectors[i], "image_embed", dtype=Tensor)
            sample.set_field({k: [features[t] for t in v] for k, v in sample.captions.items()}, "text_features")
            sample.set_field({n: {k: v[i] for k, v in s.items()} for n, s in scores.items()}, "presence_scores")
        return list(data_samples)

    def _vocabulary(self, name: str, device: torch.device) -> tuple[TextBank, dict[str, Tensor | None]]:
        """An active bank on a device and its masks by mode; cached."""
        if (name, device) not in self._vocabularies:
            bank = self._banks[name].to(device)
            # shuffled needs a second text to swap masks with.
            masks = {
                mode: resolve_masks(bank.masks, mode, bank.texts)
                for mode in RETRIEVAL_MODES
                if mode != "shuffled" or len(bank) > 1
            }
            self._vocabularies[name, device] = bank, masks
        return self._vocabularies[name, device]

    def _encode_unique(self, texts: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """``[D]`` vector and mask of each unique text."""
        unique = list(dict.fromkeys(texts))
        if not unique:
            return {}
        bank = self.towers.encode_text(unique, truncate=True)
        return {t: (e, m) for t, e, m in zip(unique, bank.embeds.cpu(), bank.masks.cpu(), strict=True)}
