"""OWL-ViT head (arXiv 2205.06230, section 3.1) with masked cosines: one box and class vector per patch token.

Shape letters: B images, N patch tokens (h w), C tower channels, D joint embedding, K classes, G ground-truth boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh, get_box_tensor
from mmdet.utils import reduce_mean
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from smartclip_det.core.errors import UserError
from smartclip_det.core.fusion import owl_logits
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.similarity import DegenerateCounter
from smartclip_det.core.text_bank import TextBank
from smartclip_det.models.roi_heads.open_vocab_bbox_head import refuse_unseen

MATCH_COSTS = (
    {"type": "FocalLossCost", "weight": 2.0},
    {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"},
    {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0},
)


@dataclass
class TokenPredictions:
    """Predictions for the tokens of B images.

    Attributes:
        vectors: ``[B, N, D]`` class vectors.
        shift: ``[B, N]`` shift added to cosines.
        scale: ``[B, N]`` raw scale of cosines.
        boxes: ``[B, N, 4]`` cxcywh relative to the padded input, in [0, 1].
    """

    vectors: Tensor
    shift: Tensor
    scale: Tensor
    boxes: Tensor


@MODELS.register_module()
class OWLHead(BaseModule):
    """Class vectors, boxes, set matching and losses of :class:`OpenVocabOWL`.

    Args:
        in_channels: C.
        embed_dim: D.
        merge_class_token: multiply patch tokens by the class token before the norm, as OWL-ViT does.
        federated: number of classes in the loss of a batch: those with a box, plus randomly drawn seen classes; 0:
            all seen classes. For federated annotations and large vocabularies.
        loss_weights: weights of ``cls``, ``bbox`` (L1 on relative coordinates) and ``giou``.
        focal: ``alpha`` and ``gamma`` of the focal loss.
        test_cfg: ``score_thr`` and ``max_per_img``.
        init_cfg: as for any MMEngine module.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dim: int = 512,
        merge_class_token: bool = True,
        federated: int = 0,
        loss_weights: Mapping[str, float] | None = None,
        focal: Mapping[str, float] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.embed_dim, self.merge_class_token, self.federated = embed_dim, merge_class_token, federated
        self.weights = {"cls": 2.0, "bbox": 5.0, "giou": 2.0, **dict(loss_weights or {})}
        self.focal = {"alpha": 0.25, "gamma": 2.0, **dict(focal or {})}
        test = {"score_thr": 0.0, "max_per_img": 300, **dict(test_cfg or {})}
        self.score_thr, self.max_per_img = test["score_thr"], test["max_per_img"]
        self.norm = nn.LayerNorm(in_channels)
        self.fc_class = nn.Linear(in_channels, embed_dim)
        self.fc_shift = nn.Linear(in_channels, 1)
        self.fc_scale = nn.Linear(in_channels, 1)
        self.box_mlp = nn.Sequential(
            nn.Linear(in_channels, in_channels),
            nn.GELU(),
            nn.Linear(in_channels, in_channels),
            nn.GELU(),
            nn.Linear(in_channels, 4),
        )
        self.assigner = TASK_UTILS.build({"type": "HungarianAssigner", "match_costs": [dict(c) for c in MATCH_COSTS]})
        self.counter = DegenerateCounter()
        # Boxes start as the grid cells, scores near 0: a cosine of about 0.2, times 10, minus 4.6.
        nn.init.zeros_(self.box_mlp[-1].weight)
        nn.init.zeros_(self.box_mlp[-1].bias)
        for layer, value in ((self.fc_shift, -0.46), (self.fc_scale, 9.0)):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, value)

    @torch.no_grad()
    def start_from(self, norm: nn.LayerNorm | None, projection: Tensor) -> None:
        """Initialise class vectors from the tower's last norm, if it has one, and its projection ``[C, D]``."""
        if norm is not None:
            self.norm.load_state_dict(norm.state_dict())
        self.fc_class.weight.copy_(projection.t())
        nn.init.zeros_(self.fc_class.bias)

    def forward(self, tokens: Tensor, class_token: Tensor | None) -> TokenPredictions:
        """Predictions of ``[B, C, h, w]`` patch tokens and the ``[B, C]`` class token."""
        grid = (tokens.shape[-2], tokens.shape[-1])
        x = tokens.flatten(2).transpose(1, 2).float()
        if self.merge_class_token:
            if class_token is None:
                raise UserError(
                    "merge_class_token=True needs a tower with a class token, and its last layer in out_indices."
                )
            x = x * class_token.float().unsqueeze(1)
        x = self.norm(x)
        boxes = (self.box_mlp(x) + cell_logits(grid, x.device)).sigmoid()
        return TokenPredictions(self.fc_class(x), self.fc_shift(x)[..., 0], self.fc_scale(x)[..., 0], boxes)

    def logits(self, predictions: TokenPredictions, bank: TextBank, policy: ScoringPolicy) -> Tensor:
        """``[B, N, K]`` class logits."""
        if bank.dim != self.embed_dim:
            raise UserError(
                f"The bank has D = {bank.dim}, this head {self.embed_dim}: they come from different towers."
            )
        cosine = bank.cosine(predictions.vectors.flatten(0, 1), policy, counter=self.counter)
        shift, scale = predictions.shift, predictions.scale
        return owl_logits(cosine, shift.flatten(), scale.flatten()).unflatten(0, shift.shape)

    def loss(
        self,
        predictions: TokenPredictions,
        samples: Sequence[Any],
        input_shape: tuple[int, int],
        bank: TextBank,
        policy: ScoringPolicy,
    ) -> dict[str, Tensor]:
        """Losses of one batch after bipartite matching of tokens and boxes.

        Args:
            predictions: predictions for all tokens.
            samples: data samples with ``gt_instances`` in input pixels.
            input_shape: H and W of the padded input.
            bank: the active bank; labels index into it.
            policy: scoring policy.
        """
        height, width = input_shape
        factor = predictions.boxes.new_tensor([width, height, width, height])
        logits = self.logits(predictions, bank, policy)
        corners = bbox_cxcywh_to_xyxy(predictions.boxes)
        onehot = torch.zeros_like(logits)
        matched_boxes, targets = [], []
        truths = [s.gt_instances for s in samples]
        refuse_unseen(torch.cat([t.labels for t in truths]), bank)
        for i, truth in enumerate(truths):
            boxes = get_box_tensor(truth.bboxes).float()
            tokens, matched = self._match(corners[i] * factor, logits[i], boxes, truth.labels, input_shape)
            onehot[i, tokens, truth.labels[matched]] = 1
            matched_boxes.append(torch.stack([predictions.boxes[i, tokens], corners[i, tokens]]))
            relative = boxes[matched] / factor
            targets.append(torch.stack([bbox_xyxy_to_cxcywh(relative), relative]))
        ours, theirs = torch.cat(matched_boxes, dim=1), torch.cat(targets, dim=1)
        count = reduce_mean(ours.new_full((1,), float(ours.shape[1]))).clamp(min=1)
        class_mask = self._classes_in_loss(torch.cat([t.labels for t in truths]), bank)
        focal = sigmoid_focal_loss(logits, onehot, alpha=self.focal["alpha"], gamma=self.focal["gamma"])
        return {
            "loss_cls": self.weights["cls"] * (focal * class_mask).sum() / count,
            "loss_bbox": self.weights["bbox"] * functional.l1_loss(ours[0], theirs[0], reduction="sum") / count,
            "loss_giou": self.weights["giou"] * generalized_box_iou_loss(ours[1], theirs[1], reduction="sum") / count,
        }

    @torch.no_grad()
    def _match(
        self, boxes: Tensor, logits: Tensor, truth: Tensor, labels: Tensor, input_shape: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Indices of the matched tokens and of their ground-truth boxes."""
        result = self.assigner.assign(
            InstanceData(bboxes=boxes, scores=logits),
            InstanceData(bboxes=truth, labels=labels),
            {"img_shape": input_shape},
        )
        tokens = (result.gt_inds > 0).nonzero().squeeze(1)
        return tokens, result.gt_inds[tokens] - 1

    def _classes_in_loss(self, labels: Tensor, bank: TextBank) -> Tensor:
        """``[K]`` 1 for classes that contribute to the loss."""
        if not self.federated:
            return bank.seen.float()
        present = torch.zeros(len(bank), dtype=torch.bool, device=labels.device)
        present[labels] = True
        others = (bank.seen & ~present).nonzero().squeeze(1)
        missing = max(0, self.federated - int(present.sum()))
        sampled = others[torch.randperm(len(others), device=others.device)[:missing]]
        present[sampled] = True
        return present.float()

    def predict(
        self,
        predictions: TokenPredictions,
        samples: Sequence[Any],
        input_shape: tuple[int, int],
        bank: TextBank,
        policy: ScoringPolicy,
        rescale: bool = True,
    ) -> list[InstanceData]:
        """Best (token, class) pairs of each image, without NMS: set matching trains tokens not to repeat boxes.

        Returns:
            Per image ``bboxes [n, 4]``, ``scores [n]``, ``labels [n]`` (bank indices) and ``label_names`` (n names).
        """
        height, width = input_shape
        scores = self.logits(predictions, bank, policy).sigmoid()
        corners = bbox_cxcywh_to_xyxy(predictions.boxes) * scores.new_tensor([width, height, width, height])
        return [
            self._predict_image(c, s, sample, bank, rescale)
            for c, s, sample in zip(corners, scores, samples, strict=True)
        ]

    def _predict_image(self, boxes: Tensor, scores: Tensor, sample: Any, bank: TextBank, rescale: bool) -> InstanceData:
        values, pairs = scores.flatten().topk(min(self.max_per_img, scores.numel()))
        above = values > self.score_thr
        values, pairs = values[above], pairs[above]
        labels = pairs % scores.shape[1]
        selected = boxes[pairs // scores.shape[1]].clone()
        selected[:, 0::2] = selected[:, 0::2].clamp(0, sample.img_shape[1])
        selected[:, 1::2] = selected[:, 1::2].clamp(0, sample.img_shape[0])
        if rescale:
            selected = selected / selected.new_tensor(sample.scale_factor).repeat(2)
        names = [bank.names[i] for i in labels.tolist()]
        return InstanceData(bboxes=selected, scores=values, labels=labels, label_names=names)


def cell_logits(grid: tuple[int, int], device: torch.device) -> Tensor:
    """``[N, 4]`` cxcywh logits of the grid cells: centre and size of each cell relative to the input."""
    h, w = grid
    y = (torch.arange(h, device=device) + 0.5) / h
    x = (torch.arange(w, device=device) + 0.5) / w
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    sizes = [torch.full_like(rows, 1 / w), torch.full_like(rows, 1 / h)]
    return torch.stack([columns, rows, *sizes], dim=-1).flatten(0, 1).logit(eps=1e-4)
