"""Grounding DINO with a sentence-level masked cosine beside its token logits (rec reference, section 6 (c)).

The new branch takes part wherever the head scores: in every decoder layer, and in the choice of the encoder's
proposals. Its scale starts at zero, so a model with released weights starts as that model.

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

#: ``none``: tested as it is (c0 is that and tools/ground.py on its boxes); ``branch``: c1; ``all``: c2.
TRAINED = ("none", "branch", "all")
#: Parts that tell a released (MM-)Grounding-DINO file: key and shape, by name. L has five levels of features.
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
    """Which released layout a state dict has, by :data:`LAYOUTS`.

    Raises:
        UserError: for none of them, telling what the nearest one lacks.
    """
    lacking = {
        name: [k for k, shape in parts.items() if tuple(getattr(state.get(k), "shape", ())) != shape]
        for name, parts in LAYOUTS.items()
    }
    best = min(lacking, key=lambda name: len(lacking[name]))
    if lacking[best]:
        raise UserError(
            f"These are no weights of a Grounding DINO of MMDetection. Nearest: {best}, of which "
            f"{', '.join(lacking[best])} is missing or of another shape."
        )
    return best


class SentenceContrast(nn.Module):
    """Token logits of a Grounding DINO branch, plus the masked cosine with the whole sentence."""

    def __init__(self, base: nn.Module, channels: int, embed_dim: int) -> None:
        """Build.

        Args:
            base: the branch's own ``ContrastiveEmbed``.
            channels: C.
            embed_dim: D.
        """
        super().__init__()
        self.base = base
        self.project = nn.Linear(channels, embed_dim)
        self.scale = scalar_parameter(0.0)
        keep_scalars_in_files(self, "scale")
        #: Vectors and masks ``[B, D]`` of the sentences at hand; the detector sets them.
        self.sentences: tuple[Tensor, Tensor | None] | None = None
        self.register_load_state_dict_pre_hook(_from_base)

    @property
    def max_text_len(self) -> int:
        """Most text tokens, as the head asks for it."""
        return self.base.max_text_len

    def forward(self, visual: Tensor, text: Tensor, text_token_mask: Tensor) -> Tensor:
        """``[B, N, max_text_len]`` logits of ``[B, N, C]`` features; -inf where there is no token."""
        if self.sentences is None:
            raise UserError("SentenceContrast was called before its detector set the sentences.")
        cosine = paired_masked_cosine(self.project(visual), *self.sentences)
        return self.base(visual, text, text_token_mask) + self.scale * cosine.unsqueeze(-1)


def _is_new(key: str) -> bool:
    return ".project." in key or key.endswith(".scale") or key.startswith("source.")


def _from_base(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Weights of a branch without the sentence go into ``base``."""
    for name, _parameter in module.base.named_parameters():
        if f"{prefix}{name}" in state and f"{prefix}base.{name}" not in state:
            state[f"{prefix}base.{name}"] = state.pop(f"{prefix}{name}")


@MODELS.register_module()
class SmartCLIPGroundingDINO(GroundingDINO):
    """One sentence an image, as in referring expressions; SmartCLIP's text side stays frozen."""

    def __init__(
        self, *args: Any, towers: Mapping[str, Any], mask_mode: str = "hard", trained: str = "branch", **kwargs: Any
    ) -> None:
        """Build.

        Args:
            args: as for MMDetection's ``GroundingDINO``.
            towers: see ``towers.source.load_towers``.
            mask_mode: of ``similarity.OWN_MASK_MODES``.
            trained: of :data:`TRAINED`.
            kwargs: as for MMDetection's ``GroundingDINO``.
        """
        self.mask_mode = check_choice("mask_mode", mask_mode, OWN_MASK_MODES)
        self.trained = check_choice("trained", trained, TRAINED)
        super().__init__(*args, **kwargs)
        self.source = FrozenTowers(towers)
        width, dim = self.embed_dims, self.source.held[0].config.embed_dim
        branches = self.bbox_head.cls_branches
        self.bbox_head.cls_branches = nn.ModuleList(SentenceContrast(b, width, dim) for b in branches)
        if trained != "all":
            self.requires_grad_(False)
        if trained == "branch":
            for branch in self.bbox_head.cls_branches:
                branch.project.requires_grad_(True)
                branch.scale.requires_grad_(True)

    def adopted_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A state dict of MMDetection's own Grounding DINO with the new branches as they are here; ours unchanged."""
        if any(k.endswith(".project.weight") for k in state):
            return dict(state)
        try:
            print_log(f"Weights of {recognise(state)}; the sentence's branches start at zero.", "current")
        except UserError as error:
            # Another size is no fault by itself: the shapes are compared with the config's next.
            print_log(str(error), "current", level=30)
        prefix = "bbox_head.cls_branches."
        moved = {
            f"{prefix}{k.split('.')[2]}.base.{k.split('.', 3)[3]}" if k.startswith(prefix) else k: v
            for k, v in state.items()
        }
        return {**{k: v for k, v in self.state_dict().items() if k not in moved and _is_new(k)}, **moved}

    def train(self, mode: bool = True) -> SmartCLIPGroundingDINO:
        """What is not trained stays in eval mode; the detector itself must know that it is training."""
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
                "SmartCLIPGroundingDINO needs one sentence for each image (text of a data sample); class names are "
                "for MMDetection's GroundingDINO."
            )
        towers = self.source.held[0]
        # Training pipelines lower sentences and end them with the mark that Grounding DINO reads; testing does not.
        texts = [t.lower().strip().rstrip(".").strip() or t for t in texts]
        found = encode_texts(towers, texts)
        masks = resolve_masks(found.mask_probs, self.mask_mode, texts) if found.has_masks else None
        for branch in self.bbox_head.cls_branches:
            branch.sentences = (found.embeds, masks)

    def loss(self, batch_inputs: Tensor, batch_data_samples: Sequence[Any]) -> Any:
        """Losses of MMDetection's head, with the sentence in its logits."""
        self._set_sentences(batch_data_samples)
        return super().loss(batch_inputs, batch_data_samples)

    def predict(self, batch_inputs: Tensor, batch_data_samples: Sequence[Any], rescale: bool = True) -> Any:
        """Predictions of MMDetection's head, with the sentence in its logits."""
        self._set_sentences(batch_data_samples)
        return super().predict(batch_inputs, batch_data_samples, rescale)
