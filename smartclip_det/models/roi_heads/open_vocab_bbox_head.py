"""Box head without a fixed number of classes: region vectors and class-agnostic box deltas.

MMDetection's ``BBoxHead`` is built around a fixed ``num_classes``. This head composes its coder and losses and
receives the text bank with every call. Background has index ``len(bank)``.

Shape letters: R regions, C classes, D joint embedding, N pooled channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS, TASK_UTILS
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional

from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.similarity import DegenerateCounter, masked_cosine
from smartclip_det.core.text_bank import TextBank
from smartclip_det.utils.scalar_parameters import keep_scalars_in_files, scalar_parameter

Targets = tuple[Tensor, Tensor, Tensor]


@MODELS.register_module()
class OpenVocabBBoxHead(BaseModule):
    """Shared convolutions and linear layers, then a region vector ``[R, D]`` and box deltas ``[R, 4]``.

    Args:
        embed_dim: D of the text banks.
        in_channels: channels of the pyramid.
        roi_size: side of pooled regions.
        num_convs: shared 3x3 convolutions.
        num_fcs: shared linear layers.
        fc_channels: width of the linear layers.
        norm_cfg: norm of the convolutions; None: no norm.
        learn_temperature: train the scale of cosines, starting from ``initial_temperature``; otherwise the
            policy's temperature is used.
        initial_temperature: see ``learn_temperature``.
        compat_relu: ReLU on region vectors, as in F-ViT's released code; do not use it with masks.
        bbox_coder: MMDetection box coder; default deltas with stds .1 .1 .2 .2.
        loss_cls: MMDetection classification loss; default cross-entropy.
        loss_bbox: MMDetection box loss; default L1.
        init_cfg: as for any MMEngine module.
    """

    def __init__(
        self,
        embed_dim: int,
        in_channels: int = 256,
        roi_size: int = 7,
        num_convs: int = 4,
        num_fcs: int = 2,
        fc_channels: int = 1024,
        norm_cfg: Mapping[str, Any] | None = None,
        learn_temperature: bool = True,
        initial_temperature: float = 50.0,
        compat_relu: bool = False,
        bbox_coder: Mapping[str, Any] | None = None,
        loss_cls: Mapping[str, Any] | None = None,
        loss_bbox: Mapping[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.embed_dim, self.compat_relu = embed_dim, compat_relu
        coder = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": [0.1, 0.1, 0.2, 0.2]}
        self.bbox_coder = TASK_UTILS.build(dict(bbox_coder or coder))
        self.loss_cls = MODELS.build(dict(loss_cls or {"type": "CrossEntropyLoss"}))
        self.loss_bbox = MODELS.build(dict(loss_bbox or {"type": "L1Loss"}))
        self.convs = nn.ModuleList(
            ConvModule(in_channels, in_channels, 3, padding=1, norm_cfg=None if norm_cfg is None else dict(norm_cfg))
            for _ in range(num_convs)
        )
        widths = [in_channels * roi_size**2, *[fc_channels] * num_fcs]
        self.fcs = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.fc_cls = nn.Linear(widths[-1], embed_dim)
        self.fc_reg = nn.Linear(widths[-1], 4)
        self.log_temperature = scalar_parameter(math.log(initial_temperature)) if learn_temperature else None
        keep_scalars_in_files(self, "log_temperature")
        self.background = nn.Parameter(torch.randn(embed_dim))
        self.counter = DegenerateCounter()
        self._initialise()

    def _initialise(self) -> None:
        for layer in self.fcs:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.fc_cls.weight, std=0.01)
        nn.init.zeros_(self.fc_cls.bias)
        nn.init.normal_(self.fc_reg.weight, std=0.001)
        nn.init.zeros_(self.fc_reg.bias)

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """``[R, N, s, s]`` pooled regions to region vectors ``[R, D]`` and deltas ``[R, 4]``."""
        x = regions
        for conv in self.convs:
            x = conv(x)
        x = x.flatten(1)
        for fc in self.fcs:
            x = fc(x).relu()
        vectors = self.fc_cls(x)
        return (vectors.relu() if self.compat_relu else vectors), self.fc_reg(x)

    def temperature(self, policy: ScoringPolicy) -> Tensor | float:
        """Scale of cosines: the learned one if any, otherwise the policy's."""
        return policy.temperature if self.log_temperature is None else self.log_temperature.exp().reshape(())

    def logits(self, vectors: Tensor, bank: TextBank, policy: ScoringPolicy) -> Tensor:
        """Class logits of ``[R, D]`` vectors: ``[R, C + 1]`` for softmax (background last), ``[R, C]`` for sigmoid."""
        if bank.dim != self.embed_dim:
            raise UserError(
                f"The bank has D = {bank.dim}, this head {self.embed_dim}: they come from different towers."
            )
        cosine = bank.cosine(vectors, policy, counter=self.counter)
        if policy.activation == "sigmoid":
            if policy.sigmoid_reference == "background":
                cosine = cosine - self.background_cosine(vectors, bank, policy)
            return self.temperature(policy) * cosine + policy.sigmoid_bias
        return self.temperature(policy) * torch.cat([cosine, self.background_cosine(vectors, bank, policy)], dim=1)

    def background_cosine(
        self, vectors: Tensor, bank: TextBank, policy: ScoringPolicy, mask_mode: str | None = None
    ) -> Tensor:
        """``[R, 1]`` cosine of the background, as set by the policy."""
        if policy.background == "zero":
            return vectors.new_zeros(len(vectors), 1, dtype=torch.float32)
        if policy.background == "learned":
            return masked_cosine(vectors, self.background.unsqueeze(0))
        if bank.background is None:
            raise UserError(
                f"background={policy.background!r} needs a bank with a background text, such as those made by "
                "models.vocabulary; or use background='zero' or 'learned'."
            )
        mode = "off" if policy.background == "text_ones" else (mask_mode or policy.mask_mode)
        # Background is a single text without another class to swap masks with, so it keeps its own.
        mode = "hard" if mode == "shuffled" else mode
        return bank.background.cosine(vectors, policy, mask_mode=mode)

    def targets(self, samples: Sequence[Any], bank: TextBank) -> Targets:
        """Labels ``[R]`` (background = C), box targets ``[R, 4]`` and ``[R]`` True for positives."""
        labels, deltas, positive = [], [], []
        for s in samples:
            labels.append(torch.cat([s.pos_gt_labels, s.pos_gt_labels.new_full((len(s.neg_priors),), len(bank))]))
            encoded = self.bbox_coder.encode(s.pos_priors, s.pos_gt_bboxes)
            deltas.append(torch.cat([encoded, encoded.new_zeros(len(s.neg_priors), 4)]))
            positive.append(torch.arange(len(labels[-1]), device=encoded.device) < len(encoded))
        return torch.cat(labels), torch.cat(deltas), torch.cat(positive)

    def loss(
        self, vectors: Tensor, deltas: Tensor, targets: Targets, bank: TextBank, policy: ScoringPolicy
    ) -> dict[str, Tensor]:
        """Classification and box losses.

        Classes marked unseen in the bank are excluded: their logits are -inf under softmax, and their terms are dropped
        under sigmoid. A training box of an unseen class is an error, never a silent leak.
        """
        labels, box_targets, positive = targets
        refuse_unseen(labels, bank)
        logits = self.logits(vectors, bank, policy).float()
        if policy.activation == "softmax":
            unseen = functional.pad(~bank.seen, (0, 1), value=False)
            logits = logits.masked_fill(unseen, float("-inf"))
            weight = torch.where(labels == len(bank), policy.background_weight, 1.0)
            loss_cls = self.loss_cls(logits, labels, weight, avg_factor=max(len(labels), 1))
        else:
            onehot = functional.one_hot(labels, len(bank) + 1)[:, :-1].float()
            terms = functional.binary_cross_entropy_with_logits(logits, onehot, reduction="none")
            loss_cls = (terms * bank.seen).sum() / max(len(labels), 1)
        losses = {"loss_cls": loss_cls, "acc": (logits.argmax(1) == labels).float().mean() * 100}
        # Negatives get their own prediction as target and add 0, which avoids indexing and its synchronisation.
        predicted = torch.where(positive.unsqueeze(1), deltas, box_targets)
        losses["loss_bbox"] = self.loss_bbox(predicted, box_targets, avg_factor=len(labels))
        if self.training and policy.background != "learned":
            # Keeps the parameter in the graph, so that DDP finds no unused parameter.
            losses["loss_cls"] = losses["loss_cls"] + self.background.sum() * 0
        return losses


def refuse_unseen(labels: Tensor, bank: TextBank) -> None:
    """Raise if labels (background = C) refer to classes marked unseen in the bank."""
    if bank.all_seen:
        return
    allowed = functional.pad(bank.seen, (0, 1), value=True)[labels]
    # One synchronisation for the whole batch; names are looked up only for the error.
    leaked = [] if bool(allowed.all()) else labels[~allowed].unique().tolist()
    if leaked:
        raise UserError(
            f"Training boxes of classes marked unseen: {', '.join(bank.names[i] for i in leaked[:5])}. "
            "Use an annotation file without them, or seen_only=True in the dataset."
        )
