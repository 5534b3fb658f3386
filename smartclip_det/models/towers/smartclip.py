"""SmartCLIP: image tower, text tower and mask network as one object (arXiv 2507.22264).

Shape letters: B images, K texts, D joint embedding, W text width, L tokens, h w grid cells.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from smartclip_det.core.errors import UserError
from smartclip_det.core.grid import KEPT_POSITIONS, stretch_text_positions
from smartclip_det.core.text_bank import TextBank
from smartclip_det.models.towers import layouts
from smartclip_det.models.towers.checkpoints import Checkpoint, read_checkpoint, state_hash, write_checkpoint
from smartclip_det.models.towers.config import TowerConfig, architecture
from smartclip_det.models.towers.exports import FOLDERS, write_folder
from smartclip_det.models.towers.local_tower import LocalTower
from smartclip_det.models.towers.low_rank import merge_low_rank
from smartclip_det.models.towers.mask_network import MaskNetwork, token_keep
from smartclip_det.models.towers.text_encoding import encode_texts
from smartclip_det.models.towers.text_transformer import TextTransformer
from smartclip_det.models.towers.tokenizer import TOKENIZER_ID, image_statistics, tokenize
from smartclip_det.models.towers.vision_transformer import VisionTransformer
from smartclip_det.utils.scalar_parameters import keep_scalars_in_files, scalar_parameter

logger = logging.getLogger(__name__)


@dataclass
class TextFeatures:
    """Features of K texts.

    Attributes:
        embeds: ``[K, D]`` projected end-token vectors, not normalised.
        states: ``[K, L, W]`` token states.
        mask_logits: ``[K, D]``, or None for towers without a mask network.
    """

    embeds: Tensor
    states: Tensor
    mask_logits: Tensor | None


class SmartCLIP(nn.Module):
    """A pair of towers and, if the checkpoint has one, a mask network."""

    def __init__(self, config: TowerConfig | Mapping[str, Any], **vision_options: Any) -> None:
        """Build with CLIP's initialisation.

        Args:
            config: tower sizes.
            vision_options: ``window_size``, ``global_layers``, ``checkpointing`` of the image tower.
        """
        super().__init__()
        self.config = c = TowerConfig.from_dict(config)
        self.image_tower = _image_tower(c, vision_options)
        self.dense_modes = self.image_tower.dense_modes
        self.text_tower = TextTransformer(
            context_length=c.context_length,
            vocab_size=c.vocab_size,
            width=c.text_width,
            layers=c.text_layers,
            heads=c.text_heads,
            embed_dim=c.embed_dim,
            activation=c.text_activation or c.activation,
            stretched=c.stretched,
        )
        self.mask_network = (
            MaskNetwork(
                c.text_width, c.embed_dim, c.text_heads, layers=c.mask_layers, mask_pad=c.mask_pad, top_k=c.mask_top_k
            )
            if c.mask_layers
            else None
        )
        self.logit_scale = scalar_parameter(math.log(1 / 0.07))
        keep_scalars_in_files(self, "logit_scale")
        self._hash: tuple[tuple[tuple[int, int], ...], str] | None = None

    @staticmethod
    def from_pretrained(name: str | Path, **options: Any) -> SmartCLIP:
        """Load towers by name (``smartclip-b16``, ``hf-hub:OWNER/NAME``, ...) or from a file, in eval mode.

        Weights that are not cached are downloaded once by the hub client; a note states what is downloaded, from where,
        its size and licence. ``smartclip-det models`` lists the names.

        Args:
            name: a name, or what :meth:`from_checkpoint` takes.
            options: passed to :meth:`from_checkpoint`.

        Raises:
            UserError: for unknown names (with the closest ones), families that only :func:`load_encoder` reads (SigLIP,
                EVA02), or a failed download.
        """
        from smartclip_det.models.towers.source import tower_file

        return SmartCLIP.from_checkpoint(tower_file(name), **options)

    @staticmethod
    def from_checkpoint(
        path: str | Path,
        *,
        activation: str | None = None,
        reading: str | None = None,
        stretch: bool = False,
        **vision_options: Any,
    ) -> SmartCLIP:
        """Load towers from any file that ``checkpoints.read_checkpoint`` supports, in eval mode.

        Args:
            path: checkpoint file, or a Hugging Face or open_clip folder.
            activation: for files that do not store it.
            reading: which weights to read from a file that has several (``ema``).
            stretch: stretch 77 text positions to 248 as in Long-CLIP.
            vision_options: see the constructor.
        """
        read = read_checkpoint(path, activation=activation, reading=reading)
        return SmartCLIP.from_read(read, stretch=stretch, **vision_options)

    @staticmethod
    def from_read(checkpoint: Checkpoint, *, stretch: bool = False, **vision_options: Any) -> SmartCLIP:
        """Build towers from a :class:`Checkpoint`, in eval mode; arguments as in :meth:`from_checkpoint`."""
        if stretch:
            checkpoint = _stretch(checkpoint)
        model = SmartCLIP(checkpoint.config, **vision_options)
        model.load_openai_state(checkpoint.state)
        return model.eval()

    @staticmethod
    def from_arch(
        arch: str, *, seed: int = 0, sizes: Mapping[str, Any] | None = None, **vision_options: Any
    ) -> SmartCLIP:
        """Build a named architecture with seeded random weights, in eval mode.

        Args:
            arch: name of the architecture.
            seed: seed of the weights.
            sizes: overrides of its :class:`TowerConfig`, e.g. ``dict(embed_dim=256)``.
            vision_options: see the constructor.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SmartCLIP(architecture(arch).with_(**(sizes or {})), **vision_options).eval()

    def openai_state(self) -> dict[str, Tensor]:
        """All tensors under OpenAI names."""
        return {layouts.from_native(k): v for k, v in merge_low_rank(self.state_dict()).items()}

    def load_openai_state(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors under OpenAI names; all must match."""
        self.load_state_dict({layouts.to_native(k): v for k, v in state.items()}, strict=True)

    def save(self, path: str | Path, *, layout: str = "openai", drop_masks: bool = False) -> Path:
        """Write a checkpoint (see ``checkpoints.write_checkpoint``) or an export folder (see ``exports``)."""
        if layout in FOLDERS:
            return write_folder(self.openai_state(), self.config, path, layout=layout, drop_masks=drop_masks)
        return write_checkpoint(self.openai_state(), self.config, path, layout=layout)

    @property
    def checkpoint_hash(self) -> str:
        """Hash of the weights, 16 hex digits; recomputed if a weight was modified in place or replaced."""
        versions = tuple((p.data_ptr(), p._version) for p in (*self.parameters(), *self.buffers()))
        if self._hash is None or self._hash[0] != versions:
            self._hash = (versions, state_hash(self.openai_state()))
        return self._hash[1]

    def forget_hash(self) -> None:
        """Recompute :attr:`checkpoint_hash` on the next access."""
        self._hash = None

    @staticmethod
    def image_statistics() -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of RGB in [0, 1]."""
        return image_statistics()

    def encode_image(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` normalised pixels to ``[B, D]`` projected vectors, not normalised."""
        out: Tensor = self.image_tower(images)
        return out

    def encode_dense(self, images: Tensor, dense_mode: str = "value") -> Tensor:
        """``[B, 3, H, W]`` normalised pixels to the dense map ``[B, D, h, w]``, not normalised."""
        dense = self.image_tower.features(images, dense_mode=dense_mode).dense
        assert dense is not None
        return dense

    def tokenize(self, texts: str | Sequence[str], *, truncate: bool = False) -> Tensor:
        """``[K, L]`` ids; padded to the context length only if the mask network attends to padding."""
        full_length = self.mask_network is not None and self.mask_network.mask_pad == "include"
        return tokenize(texts, self.config.context_length, truncate=truncate, pad_to_longest=not full_length)

    def forward_text(self, tokens: Tensor) -> TextFeatures:
        """Encode ``[K, L]`` ids with gradients: embeds, states and mask logits."""
        out = self.text_tower(tokens)
        return TextFeatures(out.embeds, out.states, self.mask_logits(out.states, token_keep(tokens)))

    def forward_text_by_length(
        self,
        tokens: Tensor,
        chunks: int,
        *,
        recompute: bool = False,
        lengths: Sequence[int] | None = None,
        order: tuple[Tensor, Tensor] | None = None,
        multiple: int = 1,
    ) -> tuple[Tensor, Tensor | None]:
        """Encode ``[K, L]`` ids in chunks of similar length, each trimmed to its longest text; results do not change.

        A mask network with ``mask_pad='include'`` reads all positions, so its chunks are not trimmed.

        Args:
            tokens: ids, padded on the right.
            chunks: number of chunks; 1: all at once.
            recompute: recompute each chunk in the backward pass, to store the activations of one chunk only.
            lengths: lengths of the texts if known on the host; reading them from a GPU synchronises.
            order: ``[K]`` indices that sort texts by length, and their inverse (see ``text_batch``); needs ``lengths``.
            multiple: pad each chunk to a multiple of this many tokens, up to the context length, so that compiled
                blocks see few lengths.

        Returns:
            Embeds and mask logits ``[K, D]`` in the order of ``tokens``.
        """
        if self.mask_network is not None and self.mask_network.mask_pad == "include":
            tokens = functional.pad(tokens, (0, self.config.context_length - tokens.shape[1]))
            batches, back = list(tokens.chunk(max(1, chunks))), None
        else:
            batches, back = _by_length(tokens, max(1, chunks), lengths, order)
            batches = [_padded(ids, multiple, self.config.context_length) for ids in batches]

        def encode(ids: Tensor) -> tuple[Tensor, Tensor | None]:
            features = self.forward_text(ids)
            return features.embeds, features.mask_logits

        parts = [checkpoint(encode, ids, use_reentrant=False) if recompute else encode(ids) for ids in batches]
        embeds, logits = torch.cat([e for e, _ in parts]), [m for _, m in parts if m is not None]
        masks = torch.cat(logits) if logits else None
        if back is None:
            return embeds, masks
        return embeds[back], None if masks is None else masks[back]

    def mask_logits(self, states: Tensor, keep: Tensor) -> Tensor | None:
        """``[K, D]`` mask logits of token states, or None without a mask network."""
        return None if self.mask_network is None else self.mask_network(states, keep)

    def provenance(self, checkpoint_hash: str | None = None) -> dict[str, str]:
        """Identifies the rows of a bank made by these towers; pass ``checkpoint_hash`` if it is already known."""
        return {
            "checkpoint_hash": checkpoint_hash or self.checkpoint_hash,
            "tokenizer": TOKENIZER_ID,
            "mask_pad": self.config.mask_pad if self.mask_network is not None else "none",
            "context_length": str(self.config.context_length),
            # Not part of the weights, but they change what the weights compute.
            "activation": self.config.text_activation or self.config.activation,
            "text_heads": str(self.config.text_heads),
        }

    @torch.no_grad()
    def encode_text(self, texts: str | Sequence[str], *, truncate: bool = False, batch_size: int = 256) -> TextBank:
        """Encode texts as a bank with one class and one row per text, in fp32.

        Args:
            texts: unique texts; a text over the token limit is an error unless ``truncate``.
            truncate: truncate longer texts.
            batch_size: texts per forward pass.

        Returns:
            A bank with normalised embeds ``[K, D]``, binary masks ``[K, D]`` (ones without a mask network) and their
            probabilities.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise UserError("encode_text needs at least one text.")
        embeds, masks, probs = [], [], []
        for start in range(0, len(texts), batch_size):
            found = encode_texts(self, texts[start : start + batch_size], truncate=truncate)
            embeds.append(functional.normalize(found.embeds, dim=-1))
            masks.append(found.masks)
            probs.append(found.mask_probs)
        return TextBank(
            names=tuple(texts),
            embeds=torch.cat(embeds),
            masks=torch.cat(masks),
            mask_probs=torch.cat(probs),
            texts=tuple(texts),
            provenance=self.provenance(),
        )


def _image_tower(c: TowerConfig, options: Mapping[str, Any]) -> VisionTransformer | LocalTower:
    if c.vision == "local":
        return LocalTower(
            image_size=c.image_size, width=c.vision_width, layers=c.vision_layers, embed_dim=c.embed_dim, **options
        )
    return VisionTransformer(
        image_size=c.image_size,
        patch_size=c.patch_size,
        width=c.vision_width,
        layers=c.vision_layers,
        heads=c.vision_heads,
        embed_dim=c.embed_dim,
        activation=c.activation,
        saliency=c.saliency,
        **options,
    )


def _by_length(
    tokens: Tensor, chunks: int, lengths: Sequence[int] | None, order: tuple[Tensor, Tensor] | None
) -> tuple[list[Tensor], Tensor | None]:
    """Chunks of similar length, each trimmed to its longest text, and the inverse permutation; None for one chunk."""
    if lengths is None or order is None:
        ends = tokens.argmax(dim=-1) + 1
        lengths, rows = ends.tolist(), ends.argsort(stable=True)
        order = rows, rows.argsort()
    if chunks == 1:
        return [tokens[:, : max(lengths)]], None
    parts, ascending = order[0].chunk(chunks), sorted(lengths)
    ends_of = torch.tensor([len(p) for p in parts]).cumsum(0).tolist()
    return [tokens[p, : ascending[end - 1]] for p, end in zip(parts, ends_of, strict=True)], order[1]


def _padded(tokens: Tensor, multiple: int, limit: int) -> Tensor:
    """``[K, L]`` ids padded on the right to a multiple of ``multiple``, at most to ``limit``."""
    length = min(-(-tokens.shape[1] // multiple) * multiple, limit)
    return functional.pad(tokens, (0, length - tokens.shape[1])) if length > tokens.shape[1] else tokens


def _stretch(checkpoint: Checkpoint) -> Checkpoint:
    if checkpoint.config.stretched:
        return checkpoint
    table = checkpoint.state["positional_embedding"]
    long = stretch_text_positions(table)
    logger.info(
        "Stretched text positions from %d to %d; rows 0-%d unchanged.", len(table), len(long), KEPT_POSITIONS - 1
    )
    state = {**checkpoint.state, "positional_embedding": long, "positional_embedding_res": long.clone()}
    config = checkpoint.config.with_(context_length=len(long), stretched=True)
    return replace(checkpoint, state=state, config=config, hash=state_hash(state))
