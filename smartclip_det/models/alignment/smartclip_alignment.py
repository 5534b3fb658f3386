"""Alignment of images and captions (SmartCLIP, arXiv 2507.22264; CLIP by config).

Shape letters: B images, D joint embedding, C classes, S side of the input in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.similarity import masked_cosine
from smartclip_det.core.text_bank import TextBank
from smartclip_det.models.alignment.distillation import RegionDistillation
from smartclip_det.models.losses.alignment_loss import AlignmentLoss
from smartclip_det.models.towers.smartclip import TextFeatures
from smartclip_det.models.towers.source import load_towers
from smartclip_det.models.towers.vision_transformer import DENSE_MODES


@MODELS.register_module()
class SmartCLIPAlignment(BaseModel):
    """Towers, the alignment loss, and optionally dense alignment and region self-distillation.

    ``towers`` are saved under their own names with ``meta['tower_config']`` (:class:`TowerCheckpointHook`), so a
    checkpoint of this model is a towers checkpoint for everything else in the package.
    """

    def __init__(
        self,
        towers: Mapping[str, Any],
        loss: Mapping[str, Any] | None = None,
        dense_weight: float = 0.0,
        dense_mode: str = "value",
        distillation: Mapping[str, Any] | None = None,
        data_preprocessor: Any = None,
        init_cfg: Any = None,
    ) -> None:
        """Build.

        Args:
            towers: where the initial weights come from, see ``towers.source.load_towers``.
            loss: options of :class:`AlignmentLoss`; None for the published loss.
            dense_weight: weight of the same loss on the mean of the dense map in place of the pooled vector, so
                that patches, too, are trained to match texts.
            dense_mode: last block of that dense map.
            distillation: options of :class:`RegionDistillation`; None for none.
            data_preprocessor: MMEngine's ``ImgDataPreprocessor`` with CLIP's statistics.
            init_cfg: unused; weights come from ``towers``.
        """
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=None)
        self.towers = load_towers(towers)
        self.loss = AlignmentLoss(**(loss or {}))
        self.dense_weight, self.dense_mode = dense_weight, check_choice("dense_mode", dense_mode, DENSE_MODES)
        self.distillation = None if distillation is None else RegionDistillation(**distillation)
        self._banks: dict[str, TextBank] = {}
        # DDP waits for every trained parameter: those that no loss reaches are not trained.
        self.towers.logit_scale.requires_grad_(self.loss.learns_scale)
        if self.towers.mask_network is not None:
            self.towers.mask_network.requires_grad_(self.loss.mask_mode != "off")
        elif self.loss.mask_mode != "off":
            raise UserError(
                f"mask_mode={self.loss.mask_mode!r} needs towers with a mask network; {towers} have none. Choose an "
                "architecture with one (SmartCLIP-...) or mask_mode='off'."
            )

    def init_weights(self) -> None:
        """Nothing: weights were loaded with the towers."""

    def set_text_banks(self, banks: Mapping[str, TextBank]) -> None:
        """Vocabularies that :meth:`forward` scores images against in ``predict`` mode, by name."""
        self._banks = dict(banks)

    def forward(
        self, inputs: Tensor, data_samples: Sequence[BaseDataElement] | None = None, mode: str = "tensor"
    ) -> Any:
        """Run one batch.

        Args:
            inputs: ``[B, 3, S, S]`` normalised pixels.
            data_samples: ``drawn_captions`` each, as many for all, for ``loss``; ``captions`` for ``predict``.
            mode: ``loss`` (dict of losses), ``predict`` (see :meth:`predict`), ``tensor`` (``[B, D]`` vectors).

        Raises:
            UserError: for another mode, or samples without what the mode needs.
        """
        if mode == "tensor":
            return self.towers.encode_image(inputs)
        if data_samples is None or mode not in ("loss", "predict"):
            raise UserError(f"mode must be loss or predict with data_samples, or tensor; given {mode!r}.")
        return self._losses(inputs, data_samples) if mode == "loss" else self.predict(inputs, data_samples)

    def _losses(self, inputs: Tensor, data_samples: Sequence[BaseDataElement]) -> dict[str, Tensor]:
        sets = list(zip(*(s.drawn_captions for s in data_samples), strict=True))
        tokens = self.towers.tokenize([t for one in sets for t in one], truncate=True).to(inputs.device)
        dense_mode = self.dense_mode if self.dense_weight or self.distillation is not None else None
        seen = self.towers.image_tower.features(inputs, dense_mode=dense_mode, pooled=True)
        texts = self.towers.forward_text(tokens)
        losses = self._contrast(seen.pooled, texts, len(sets))
        if self.dense_weight:
            dense = self._contrast(seen.dense.flatten(2).mean(dim=2), texts, len(sets))
            losses.update({f"{k}_dense": self.dense_weight * dense[k] for k in ("loss_sidm", "loss_dism")})
        if self.distillation is not None:
            losses.update(self.distillation(self.towers.image_tower, inputs, seen.dense))
        # Captions over the context are cut, as in the released training: the log tells how many reach the limit.
        reaching = tokens.shape[1] == self.towers.config.context_length
        losses["texts_at_limit"] = (
            (tokens[:, -1] != 0).float().mean() if reaching else tokens.new_zeros((), dtype=torch.float)
        )
        return losses

    def _contrast(self, images: Tensor, texts: TextFeatures, sets: int) -> dict[str, Tensor]:
        """Mean losses of ``[B, D]`` image vectors with each of the sets of B captions."""
        logits = [None] * sets if texts.mask_logits is None else texts.mask_logits.chunk(sets)
        parts = [
            self.loss(images, embeds, mask_logits, self.towers.logit_scale)
            for embeds, mask_logits in zip(texts.embeds.chunk(sets), logits, strict=True)
        ]
        return {k: torch.stack([p[k] for p in parts]).mean() for k in parts[0]}

    @torch.no_grad()
    def predict(self, inputs: Tensor, data_samples: Sequence[BaseDataElement]) -> list[BaseDataElement]:
        """What retrieval and zero-shot tests need of each image.

        Returns:
            The samples with ``image_embed [D]``; ``text_features``: for each kind of caption a list of (vector ``[D]``,
            mask ``[D]``); ``presence_scores``: for each vocabulary in force ``masked [C]`` and ``plain [C]`` cosines.
        """
        images = self.towers.encode_image(inputs)
        scores = {}
        for name, bank in self._banks.items():
            bank = bank.to(images.device)
            scores[name] = {
                "masked": masked_cosine(images, bank.embeds, bank.masks).cpu(),
                "plain": masked_cosine(images, bank.embeds).cpu(),
            }
        texts = [t for s in data_samples for kind in s.captions.values() for t in kind]
        found = self._encode_unique(texts)
        for i, sample in enumerate(data_samples):
            sample.set_field(images[i].float().cpu(), "image_embed", dtype=Tensor)
            sample.set_field({k: [found[t] for t in v] for k, v in sample.captions.items()}, "text_features")
            sample.set_field({n: {k: v[i] for k, v in s.items()} for n, s in scores.items()}, "presence_scores")
        return list(data_samples)

    def _encode_unique(self, texts: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """``[D]`` vector and mask of each different text."""
        unique = list(dict.fromkeys(texts))
        if not unique:
            return {}
        bank = self.towers.encode_text(unique, truncate=True)
        return {t: (e, m) for t, e, m in zip(unique, bank.embeds.cpu(), bank.masks.cpu(), strict=True)}
