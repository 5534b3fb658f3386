"""Two-stage open-vocabulary detector on a SmartCLIP image tower (F-ViT of CLIPSelf, arXiv 2310.01403).

Shape letters: B images, R regions, D joint embedding, h w grid cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor

from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.similarity import DegenerateCounter
from smartclip_det.models.detectors.active_bank import ActiveBank


@MODELS.register_module()
class OpenVocabRCNN(ActiveBank, BaseDetector):
    """Frozen tower, pyramid neck, class-agnostic RPN, open-vocabulary RoI head.

    Args:
        backbone: a :class:`SmartCLIPViT`.
        neck: an MMDetection neck or a list of them.
        rpn_head: MMDetection ``RPNHead``.
        roi_head: :class:`OpenVocabRoIHead`.
        policy: scoring policy.
        default_vocabulary: ``dict(towers=..., names=..., templates=...)``, encoded if the detector is used before a
            bank is set (``init_detector``, ``DetInferencer``); names may be a list, a file or the name of a known
            vocabulary.
        train_cfg: ``rpn``, ``rpn_proposal``, ``rcnn``.
        test_cfg: ``rpn``, ``rcnn``.
        data_preprocessor: MMDetection preprocessor with the tower's statistics.
        init_cfg: as for any MMEngine module.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        neck: Any,
        rpn_head: Mapping[str, Any],
        roi_head: Mapping[str, Any],
        policy: Mapping[str, Any] | None = None,
        default_vocabulary: Mapping[str, Any] | None = None,
        train_cfg: Any = None,
        test_cfg: Any = None,
        data_preprocessor: Any = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.policy = ScoringPolicy.from_dict(policy).without_presence("Trained heads")
        self.backbone = MODELS.build(backbone)
        self.neck = MODELS.build(neck)
        train, test = train_cfg or {}, test_cfg or {}
        self.rpn_head = MODELS.build({**rpn_head, "train_cfg": train.get("rpn"), "test_cfg": test.get("rpn")})
        self.roi_head = MODELS.build({**roi_head, "train_cfg": train.get("rcnn"), "test_cfg": test.get("rcnn")})
        self.train_cfg, self.test_cfg = train_cfg, test_cfg
        self.default_vocabulary = default_vocabulary

    @property
    def degenerate_counter(self) -> DegenerateCounter:
        """Counts cosines whose vector was empty after masking."""
        counter: DegenerateCounter = self.roi_head.bbox_head.counter
        return counter

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """``[B, 3, H, W]`` to the maps of the pyramid."""
        with self._mixed(batch_inputs.device):
            return tuple(self.neck(self.backbone(batch_inputs)))

    def _mixed(self, device: torch.device) -> AbstractContextManager[Any]:
        """Autocast context of tower and neck; heads, boxes and scores are fp32."""
        return self.backbone.mixed(device) if hasattr(self.backbone, "mixed") else nullcontext()

    def loss(self, batch_inputs: Tensor, batch_data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """Losses of RPN and RoI head."""
        bank = self._active_bank(batch_inputs.device)
        pyramid = self.extract_feat(batch_inputs)
        with torch.autocast(batch_inputs.device.type, enabled=False):
            pyramid = tuple(p.float() for p in pyramid)
            agnostic = [_agnostic(s) for s in batch_data_samples]
            proposal_cfg = self.train_cfg.get("rpn_proposal", self.test_cfg.rpn)
            rpn, proposals = self.rpn_head.loss_and_predict(pyramid, agnostic, proposal_cfg=proposal_cfg)
            losses = {k if "rpn" in k else f"rpn_{k}": v for k, v in rpn.items()}
            losses.update(self.roi_head.loss(pyramid, proposals, batch_data_samples, bank, self.policy))
        return losses

    def predict(self, batch_inputs: Tensor, batch_data_samples: Any, rescale: bool = True) -> Any:
        """Detections in ``pred_instances``; the RPN is skipped for samples with ``proposals``."""
        bank = self._active_bank(batch_inputs.device)
        with self._mixed(batch_inputs.device):
            features = self.backbone.features(batch_inputs, dense=self.policy.fuses)
            pyramid = tuple(p.float() for p in self.neck(features.taps))
        with torch.autocast(batch_inputs.device.type, enabled=False):
            proposals = [s.get("proposals") for s in batch_data_samples]
            if any(p is None for p in proposals):
                proposals = self.rpn_head.predict(pyramid, batch_data_samples, rescale=False)
            results = self.roi_head.predict(
                pyramid, features.dense, proposals, batch_data_samples, bank, self.policy, rescale=rescale
            )
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: Any = None) -> tuple[Tensor, ...]:
        """Raw maps of the pyramid."""
        return self.extract_feat(batch_inputs)


def _agnostic(sample: Any) -> Any:
    """Copy of the sample with a single class, for the RPN. Only metadata is copied: masks may be large."""
    agnostic = type(sample)(metainfo=sample.metainfo)
    boxes = sample.gt_instances.bboxes
    agnostic.gt_instances = InstanceData(bboxes=boxes, labels=torch.zeros_like(sample.gt_instances.labels))
    if "ignored_instances" in sample:
        agnostic.ignored_instances = sample.ignored_instances
    return agnostic
