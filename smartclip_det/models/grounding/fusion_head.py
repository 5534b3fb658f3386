"""A light head that regresses boxes from frozen towers: patch and text tokens in one small transformer.

The architecture is CLIP-VG's (arXiv 2305.08685): taps of several layers, text tokens, learned query tokens, a
transformer encoder, one box per query. In addition, the text's mask enters as a gate on the projected patches and as a
similarity map, both through zero-initialised weights, so an untrained head equals the one without masks.

Shape letters: B images, K sentences, N patches (h w), L text tokens, W text width, C tower channels, D joint embedding,
E width of the head, Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from smartclip_det.core.errors import UserError
from smartclip_det.core.similarity import paired_masked_cosine
from smartclip_det.utils.scalar_parameters import keep_scalars_in_files, scalar_parameter


@dataclass
class ImageTokens:
    """Frozen features of B images.

    Attributes:
        taps: ``[B, T C, h, w]`` patch tokens of T layers.
        dense: ``[B, D, h, w]`` projected patches, not normalised.
    """

    taps: Tensor
    dense: Tensor


@dataclass
class TextTokens:
    """Frozen features of K sentences.

    Attributes:
        states: ``[K, L, W]`` token states.
        keep: ``[K, L]`` True for tokens that are not padding.
        embeds: ``[K, D]`` sentence vectors.
        masks: ``[K, D]`` sentence masks in [0, 1], or None for the control without masks.
    """

    states: Tensor
    keep: Tensor
    embeds: Tensor
    masks: Tensor | None


@dataclass
class GroundingOutput:
    """Predictions for K sentences.

    Attributes:
        boxes: ``[K, Q, 4]`` cxcywh relative to the square input, in [0, 1].
        exists: ``[K, Q]`` logits that the box of a query is a target.
        similarity: ``[K, h, w]`` logits of the masked similarity map.
        pixels: ``[K, 8 h, 8 w]`` mask logits, or None without a mask branch.
    """

    boxes: Tensor
    exists: Tensor
    similarity: Tensor
    pixels: Tensor | None


class FusionHead(nn.Module):
    """Fuses patch and text tokens; predicts boxes, existence, a similarity map and optionally masks.

    Args:
        channels: T C, total channels of all taps.
        text_width: W.
        embed_dim: D.
        grid: h = w, patches per side.
        text_length: maximum number of text tokens.
        dim: E.
        layers: number of encoder layers.
        heads: number of attention heads.
        feedforward: width of the feed-forward layers.
        dropout: dropout rate of the encoder.
        queries: Q; 1 for one box per sentence, 10 for any number.
        gate: feed masks and the similarity map to the tokens; otherwise they only produce the map.
        mask_branch: also predict masks (three transposed convolutions, as in HiVG, arXiv 2404.13400).
    """

    def __init__(
        self,
        *,
        channels: int,
        text_width: int,
        embed_dim: int,
        grid: int,
        text_length: int,
        dim: int = 512,
        layers: int = 6,
        heads: int = 8,
        feedforward: int = 2048,
        dropout: float = 0.1,
        queries: int = 1,
        gate: bool = True,
        mask_branch: bool = False,
    ) -> None:
        super().__init__()
        if queries < 1 or layers < 1 or dim % heads:
            raise UserError(
                "queries and layers must be at least 1, and dim a multiple of heads; given "
                f"{queries}, {layers}, {dim} and {heads}."
            )
        self.grid, self.text_length, self.num_queries = grid, text_length, queries
        self.visual = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, dim), nn.LayerNorm(dim))
        self.text = nn.Sequential(nn.Linear(text_width, dim), nn.LayerNorm(dim))
        self.sentence = nn.Sequential(nn.Linear(embed_dim, dim), nn.LayerNorm(dim))
        self.gate = nn.Linear(embed_dim, dim) if gate else None
        self.map_channel = nn.Parameter(torch.zeros(dim)) if gate else None
        self.queries = nn.Parameter(torch.empty(queries, dim))
        self.positions = nn.Parameter(torch.empty(queries + text_length + grid * grid, dim))
        layer = nn.TransformerEncoderLayer(dim, heads, feedforward, dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.point = nn.Linear(dim, dim)
        self.box = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 4))
        self.exists = nn.Linear(dim, 1)
        self.refine = nn.Linear(dim, embed_dim)
        self.map_scale, self.map_bias = scalar_parameter(10.0), scalar_parameter(-3.0)
        keep_scalars_in_files(self, "map_scale", "map_bias")
        self.upscale, self.kernel = None, None
        if mask_branch:
            widths = [dim, dim // 2, dim // 4, dim // 8]
            steps: list[nn.Module] = []
            for a, b in pairwise(widths):
                steps += [nn.ConvTranspose2d(a, b, 2, stride=2), nn.GroupNorm(1, b), nn.GELU()]
            self.upscale, self.kernel = nn.Sequential(*steps[:-1]), nn.Linear(embed_dim, widths[-1])
        self._initialise()

    def _initialise(self) -> None:
        for table in (self.queries, self.positions):
            nn.init.normal_(table, std=0.02)
        for layer in self.encoder.layers:
            for weight in layer.parameters():
                if weight.dim() > 1:
                    nn.init.xavier_uniform_(weight)
        # Zero initialisation: at first masks add nothing, and the map is that of the frozen towers.
        for part in (self.gate, self.refine):
            if part is not None:
                nn.init.zeros_(part.weight)
                nn.init.zeros_(part.bias)

    def forward(self, images: ImageTokens, texts: TextTokens, image_index: Tensor) -> GroundingOutput:
        """Ground K sentences in B images.

        Args:
            images: tokens of the images.
            texts: tokens of the sentences.
            image_index: ``[K]`` image of each sentence.

        Raises:
            UserError: for another grid, or sentences longer than the learned positions.
        """
        height, width = images.dense.shape[-2:]
        length = texts.states.shape[1]
        if (height, width) != (self.grid, self.grid) or length > self.text_length:
            raise UserError(
                f"The head was built for {self.grid} x {self.grid} patches and {self.text_length} tokens; "
                f"given {height} x {width} and {length}."
            )
        patches = self.visual(images.taps.flatten(2).transpose(1, 2))
        dense = functional.normalize(images.dense.flatten(2).transpose(1, 2), dim=-1)
        joint = (dense + self.refine(patches))[image_index]
        cosine = paired_masked_cosine(joint, texts.embeds, texts.masks)
        patches = patches[image_index] + self._masked(joint, cosine, texts)
        words = self.text(texts.states)
        queries = self.queries + self.sentence(functional.normalize(texts.embeds, dim=-1)).unsqueeze(1)
        positions = torch.cat([self.positions[: self.num_queries + length], self.positions[-(self.grid**2) :]])
        tokens = torch.cat([queries, words, patches], dim=1) + positions
        hidden = ~torch.cat(
            [
                texts.keep.new_ones(len(words), self.num_queries),
                texts.keep,
                texts.keep.new_ones(len(words), height * width),
            ],
            dim=1,
        )
        tokens = self.encoder(tokens, src_key_padding_mask=hidden)
        query_out, cells = tokens[:, : self.num_queries], tokens[:, self.num_queries + length :]
        similarity = (self.map_scale * cosine + self.map_bias).view(-1, height, width)
        return GroundingOutput(
            self._boxes(query_out, cells),
            self.exists(query_out).squeeze(-1),
            similarity,
            self._pixels(cells, texts, height, width),
        )

    def _boxes(self, queries: Tensor, cells: Tensor) -> Tensor:
        """``[K, Q, 4]``; centres are offsets from the mean position of the patches that a query attends to."""
        weights = (self.point(queries) @ cells.transpose(1, 2) / cells.shape[-1] ** 0.5).softmax(dim=-1)
        steps = (torch.arange(self.grid, device=cells.device, dtype=cells.dtype) + 0.5) / self.grid
        positions = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).view(-1, 2)
        centre = (weights @ positions).clamp(1e-4, 1 - 1e-4).logit()
        raw = self.box(queries)
        return torch.cat([raw[..., :2] + centre, raw[..., 2:]], dim=-1).sigmoid()

    def _masked(self, joint: Tensor, cosine: Tensor, texts: TextTokens) -> Tensor | int:
        """``[K, N, E]`` added to the patches of its image under each sentence's mask."""
        if self.gate is None or self.map_channel is None:
            return 0
        masked = joint if texts.masks is None else joint * texts.masks.unsqueeze(1)
        added: Tensor = self.gate(functional.normalize(masked, dim=-1))
        return added + cosine.unsqueeze(-1) * self.map_channel

    def _pixels(self, cells: Tensor, texts: TextTokens, height: int, width: int) -> Tensor | None:
        if self.upscale is None or self.kernel is None:
            return None
        grid = cells.transpose(1, 2).reshape(len(cells), -1, height, width)
        kernel = self.kernel(
            functional.normalize(texts.embeds if texts.masks is None else texts.embeds * texts.masks, dim=-1)
        )
        return torch.einsum("kchw,kc->khw", self.upscale(grid), kernel)
