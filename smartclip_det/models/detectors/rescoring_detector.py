"""Training-free detector: boxes of any MMDetection detector, classified by dense features of a CLIP tower.

Shape letters: B images, R regions, D joint embedding, h w grid cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures.bbox import scale_boxes
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn import functional

from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.similarity import DegenerateCounter
from smartclip_det.core.text_bank import TextBank
from smartclip_det.models.detectors.active_bank import ActiveBank
from smartclip_det.models.regions import pool_regions
from smartclip_det.models.rescoring import RescoreOptions, best_boxes, class_scores, detect_in_boxes


@MODELS.register_module()
class RescoringDetector(ActiveBank, BaseDetector):
    """Rescoring as a config: boxes of a proposer, its scores as objectness, classes of the active bank.

    A checkpoint of the proposer alone can be loaded: the tower comes from the config.

    Args:
        proposer: config of an MMDetection detector, with its ``data_preprocessor``.
        backbone: a :class:`SmartCLIPViT`; only its dense map is used.
        policy: scoring policy; see ``rescoring.class_scores``.
        options: see :class:`RescoreOptions`.
        proposal_nms: IoU of class-agnostic NMS on the proposer's boxes.
        max_proposals: maximum number of boxes per image.
        data_preprocessor: preprocessor with the tower's statistics; the same pixels are re-normalised with the
            proposer's own.
        init_cfg: as for any MMEngine module.
    """

    def __init__(
        self,
        proposer: Mapping[str, Any],
        backbone: Mapping[str, Any],
        policy: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        proposal_nms: float = 0.7,
        max_proposals: int = 300,
        data_preprocessor: Any = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.policy = ScoringPolicy.from_dict({"background": "zero", **dict(policy or {})})
        self.options = RescoreOptions(**dict(options or {}))
        self.proposal_nms, self.max_proposals = proposal_nms, max_proposals
        self.backbone = MODELS.build(backbone)
        self.proposer = MODELS.build(proposer)
        self.requires_grad_(False)
        self.degenerate_counter = DegenerateCounter()
        self._register_load_state_dict_pre_hook(self._adopt)

    def adopted_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A proposer's state dict with its keys prefixed; any other state dict is returned unchanged."""
        if any(k.startswith(("proposer.", "backbone.image_tower.")) for k in state):
            return dict(state)
        own = {k: v for k, v in self.state_dict().items() if k.startswith("backbone.")}
        return {**{f"proposer.{k}": v for k, v in state.items()}, **own}

    def _adopt(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        if not prefix:
            adopted = self.adopted_state(state)
            state.clear()
            state.update(adopted)

    def extract_feat(self, batch_inputs: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to the dense map ``[B, D, h, w]``."""
        dense: Tensor = self.backbone.features(batch_inputs, dense=True).dense
        return dense

    def loss(self, batch_inputs: Tensor, batch_data_samples: Any) -> dict[str, Tensor]:
        """Raise: there is nothing to train."""
        raise UserError("RescoringDetector has nothing to train: run tools/test.py with the proposer's checkpoint.")

    def predict(self, batch_inputs: Tensor, batch_data_samples: Any, rescale: bool = True) -> Any:
        """Detections in ``pred_instances``."""
        bank = self._active_bank(batch_inputs.device)
        dense = self.extract_feat(batch_inputs).float()
        image_vectors = self._image_vectors(batch_inputs, dense, batch_data_samples)
        if self.policy.dense_norm == "pixel":
            dense = functional.normalize(dense, dim=1)
        proposed = self.proposer.predict(
            self._for_proposer(batch_inputs, batch_data_samples), batch_data_samples, rescale=False
        )
        cell = self.backbone.image_tower.patch_size
        results = [
            self._predict_image(s.pred_instances, dense[i : i + 1], cell, s, bank, rescale, image_vectors[i])
            for i, s in enumerate(proposed)
        ]
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _image_vectors(self, images: Tensor, dense: Tensor, samples: Sequence[Any]) -> list[Tensor | None]:
        """``[P, D]`` vectors of each image if the policy uses presence: pooled, or the cells without padding."""
        if not self.policy.presence:
            return [None] * len(images)
        tower = self.backbone.image_tower
        if self.policy.presence_source == "pooled":
            return list(tower(images).float().unsqueeze(1))
        shown = [[-(-n // tower.patch_size) for n in s.img_shape[:2]] for s in samples]
        return [m[:, :rows, :columns].flatten(1).t() for m, (rows, columns) in zip(dense, shown, strict=True)]

    def _predict_image(
        self,
        proposals: InstanceData,
        dense: Tensor,
        cell: float,
        sample: Any,
        bank: TextBank,
        rescale: bool,
        image_vectors: Tensor | None,
    ) -> InstanceData:
        boxes, objectness = proposals.bboxes.float(), proposals.scores.float()
        best = best_boxes(boxes, objectness, self.proposal_nms, self.max_proposals)
        boxes, objectness = boxes[best], objectness[best]
        rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1)
        scores = class_scores([pool_regions(dense, rois, cell)], bank, self.policy, image_vectors)
        if rescale and len(boxes):
            boxes = scale_boxes(boxes, [1 / s for s in sample.scale_factor])
        rows, labels, values = detect_in_boxes(boxes, objectness, scores, self.options)
        names = [bank.names[i] for i in labels.tolist()]
        return InstanceData(bboxes=boxes[rows], scores=values, labels=labels, label_names=names)

    def _for_proposer(self, images: Tensor, samples: Sequence[Any]) -> Tensor:
        """The same pixels under the proposer's normalisation, zero in the padding as in MMDetection."""
        ours, theirs = self.data_preprocessor, self.proposer.data_preprocessor
        raw = images * ours.std + ours.mean if ours._enable_normalize else images
        if ours._channel_conversion != theirs._channel_conversion:
            raw = raw.flip(1)
        out = (raw - theirs.mean) / theirs.std if theirs._enable_normalize else raw
        for i, sample in enumerate(samples):
            height, width = sample.img_shape[:2]
            out[i, :, height:] = 0
            out[i, :, :, width:] = 0
        return out

    def _forward(self, batch_inputs: Tensor, batch_data_samples: Any = None) -> Any:
        """The dense map."""
        return self.extract_feat(batch_inputs)
