"""Grounding DINO (arXiv 2303.05499) with a sentence-level masked cosine added to its token logits.

The branch is added wherever the head scores: in every decoder layer, and in the selection of encoder proposals. Its
scale starts at zero, so a model with released weights initially gives the released predictions.

Shape letters: B images with one sentence each, N queries or cells, C their channels, D joint embedding, L text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.detectors import GroundingDINO
from mmdet.registry import MODELS
from mmengine.logging import print_log
from torch import Tensor, nn

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.similarity import OWN_MASK_MODES, paired_masked_cosine, resolve_masks
from smartclip_det.models.towers.frozen import FrozenTowers
from smartclip_det.models.towers.text_encoding import encode_texts
from smartclip_det.utils.scalar_parameters import keep_scalars_in_files, scalar_parameter

#: Trained parameters. ``none``: released weights; ``branch``: only the cosine branch; ``all``: everything but the text
#: tower.
TRAINED = ("none", "branch", "all")
#: Keys and shapes that identify a released (MM-)Grounding-DINO checkpoint, by name. L has five feature levels.
LAYOUTS: dict[str, dict[str, tuple[int, ...]]] = {
    f"{family} Swin-{size}": {
        "backbone.patch_embed.projection.weight": (width, 3, 4, 4),
        "level_embed": (levels, 256),
        "query_embedding.weight": (900, 256),
        "text_feat_map.weight": (256, 768),
        "language_model.language_backbone.body.model.embeddings.word_embeddings.weight": (30522, 768),
        **({"bbox_head.cls_branches.0.bias": (1,)} if family == "MM-Grounding-DINO" else {}),
    }
    for family, size, width, levels in (
        ("MM-Grounding-DINO", "T", 96, 4),
        ("MM-Grounding-DINO", "L", 192, 5),
        ("Grounding DINO", "T", 96, 4),
        ("Grounding DINO", "B", 128, 4),
    )
}


def recognise(state: Mapping[str, Any]) -> str:
    """Identify the released layout of a state dict, see :data:`LAYOUTS`.

    Raises:
        UserError: if none matches; the message lists what the closest one lacks.
    """
    lacking = {
        name: [k for k, shape in parts.items() if tuple(getattr(state.get(k), "shape", ())) != shape]
        for name, parts in LAYOUTS.items()
    }
    best = min(lacking, key=lambda name: len(lacking[name]))
    if lacking[best]:
        raise UserError(
            f"These are not weights of MMDetection's Grounding DINO. Closest layout: {best}, of which "
            f"{', '.join(lacking[best])} is missing or has another shape."
        )
    return best


class SentenceContrast(nn.Module):
    """Token logits of a Grounding DINO branch plus the masked cosine with the full sentence.

    Args:
        base: the original ``ContrastiveEmbed`` of the branch.
        channels: C.
        embed_dim: D.
    """

    def __init__(self, base: nn.Module, channels: int, embed_dim: int) -> None:
        super().__init__()
        self.base = base
        self.project = nn.Linear(channels, embed_dim)
        self.scale = scalar_parameter(0.0)
        keep_scalars_in_files(self, "scale")
        #: Vectors and masks ``[B, D]`` of the current sentences; set by the detector.
        self.sentences: tuple[Tensor, Tensor | None] | None = None
        self.register_load_state_dict_pre_hook(_from_base)

    @property
    def max_text_len(self) -> int:
        """Maximum number of text tokens, which the head reads."""
        return self.base.max_text_len

    def forward(self, visual: Tensor, text: Tensor, text_token_mask: Tensor) -> Tensor:
        """``[B, N, max_text_len]`` logits of ``[B, N, C]`` features; -inf for padding tokens."""
        if self.sentences is None:
            raise UserError("SentenceContrast was called before its detector set the sentences.")
        cosine = paired_masked_cosine(self.project(visual), *self.sentences)
        return self.base(visual, text, text_token_mask) + self.scale * cosine.unsqueeze(-1)


def _is_new(key: str) -> bool:
    return ".project." in key or key.endswith(".scale") or key.startswith("source.")


def _from_base(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Load the weights of an original branch into ``base``."""
    for name, _parameter in module.base.named_parameters():
        if f"{prefix}{name}" in state and f"{prefix}base.{name}" not in state:
            state[f"{prefix}base.{name}"] = state.pop(f"{prefix}{name}")


@MODELS.register_module()
class SmartCLIPGroundingDINO(GroundingDINO):
    """Grounding DINO with one sentence per image, as in referring expressions; SmartCLIP's text side stays frozen.

    Args:
        args: as for MMDetection's ``GroundingDINO``.
        towers: see ``towers.source.load_towers``.
        mask_mode: one of ``similarity.OWN_MASK_MODES``.
        trained: one of :data:`TRAINED`.
        kwargs: as for MMDetection's ``GroundingDINO``.
    """

    def __init__(
        self, *args: Any, towers: Mapping[str, Any], mask_mode: str = "hard", trained: str = "branch", **kwargs: Any
    ) -> None:
        self.mask_mode = check_choice("mask_mode", mask_mode, OWN_MASK_MODES)
        self.trained = check_choice("trained", trained, TRAINED)
        super().__init__(*args, **kwargs)
        self.source = FrozenTowers(towers)
        width, dim = self.embed_dims, self.source.unregistered[0].config.embed_dim
        branches = self.bbox_head.cls_branches
        self.bbox_head.cls_branches = nn.ModuleList(SentenceContrast(b, width, dim) for b in branches)
        if trained != "all":
            self.requires_grad_(False)
        if trained == "branch":
            for branch in self.bbox_head.cls_branches:
                branch.project.requires_grad_(True)
                branch.scale.requires_grad_(True)

    def adopted_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Convert a state dict of MMDetection's Grounding DINO, adding the new branches; ours is returned unchanged."""
        if any(k.endswith(".project.weight") for k in state):
            return dict(state)
        try:
            print_log(f"Weights of {recognise(state)}; the scale of the sentence branches starts at zero.", "current")
        except UserError as error:
            # Another size is not an error in itself: shapes are compared with the config afterwards.
            print_log(str(error), "current", level=30)
        prefix = "bbox_head.cls_branches."
        renamed = {
            f"{prefix}{k.split('.')[2]}.base.{k.split('.', 3)[3]}" if k.startswith(prefix) else k: v
            for k, v in state.items()
        }
        return {**{k: v for k, v in self.state_dict().items() if k not in renamed and _is_new(k)}, **renamed}

    def train(self, mode: bool = True) -> SmartCLIPGroundingDINO:
        """Keep frozen children in eval mode; the detector itself must have ``training`` set to compute losses."""
        super().train(mode)
        if mode and self.trained != "all":
            for child in self.children():
                child.eval()
        return self

    @torch.no_grad()
    def _set_sentences(self, samples: Sequence[Any]) -> None:
        texts = [s.text for s in samples]
        if not all(isinstance(t, str) and t.strip() for t in texts):
            raise UserError(
                "SmartCLIPGroundingDINO needs one sentence per image (text of a data sample). For class names use "
                "MMDetection's GroundingDINO."
            )
        towers = self.source.unregistered[0]
        # Training pipelines lower-case sentences and append Grounding DINO's final dot; test pipelines do not.
        texts = [t.lower().strip().rstrip(".").strip() or t for t in texts]
        encoded = encode_texts(towers, texts)
        masks = resolve_masks(encoded.mask_probs, self.mask_mode, texts) if encoded.has_masks else None
        for branch in self.bbox_head.cls_branches:
            branch.sentences = (encoded.embeds, masks)

    def loss(self, batch_inputs: Tensor, batch_data_samples: Sequence[Any]) -> Any:
        """Losses of MMDetection's head, with sentence logits."""
        self._set_sentences(batch_data_samples)
        return super().loss(batch_inputs, batch_data_samples)

    def predict(self, batch_inputs: Tensor, batch_data_samples: Sequence[Any], rescale: bool = True) -> Any:
        """Predictions of MMDetection's head, with sentence logits."""
        self._set_sentences(batch_data_samples)
        return super().predict(batch_inputs, batch_data_samples, rescale)
