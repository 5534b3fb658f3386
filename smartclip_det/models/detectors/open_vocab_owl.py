"""One-stage open-vocabulary detector: one box per patch token (OWL-ViT, arXiv 2205.06230).

Shape letters: B images, R boxes, D joint embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS
from torch import Tensor

from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.similarity import DegenerateCounter
from smartclip_det.models.detectors.active_bank import ActiveBank


@MODELS.register_module()
class OpenVocabOWL(ActiveBank, BaseDetector):
    """A trained image tower and an :class:`OWLHead`; the text side of the tower stays frozen.

    Args:
        backbone: a :class:`SmartCLIPViT` whose ``out_indices`` contain only the last layer.
        bbox_head: an :class:`OWLHead`.
        policy: scoring policy; mask mode, text norm and calibration are used.
        default_vocabulary: see :class:`OpenVocabRCNN`.
        test_cfg: test config of the head.
        data_preprocessor: MMDetection preprocessor with the tower's statistics; images are padded to a square.
        init_cfg: as for any MMEngine module.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        bbox_head: Mapping[str, Any],
        policy: Mapping[str, Any] | None = None,
        default_vocabulary: Mapping[str, Any] | None = None,
        test_cfg: Any = None,
        data_preprocessor: Any = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.policy = ScoringPolicy.from_dict(policy).without_presence("Trained heads")
        self.backbone = MODELS.build(backbone)
        self.bbox_head = MODELS.build({**bbox_head, "test_cfg": test_cfg})
        self.default_vocabulary = default_vocabulary
        tower = self.backbone.image_tower
        if tuple(i % tower.layers for i in self.backbone.out_indices) != (tower.layers - 1,):
            raise UserError(
                f"OpenVocabOWL reads the last layer: out_indices=({tower.layers - 1},) or (-1,); given "
                f"{tuple(self.backbone.out_indices)}."
            )
        self.bbox_head.start_from(*tower.readout())

    @property
    def degenerate_counter(self) -> DegenerateCounter:
        """Counts cosines whose vector was empty after masking."""
        counter: DegenerateCounter = self.bbox_head.counter
        return counter

    def extract_feat(self, batch_inputs: Tensor) -> Any:
        """``[B, 3, H, W]`` to the head's :class:`TokenPredictions`."""
        features = self.backbone.features(batch_inputs)
        with torch.autocast(batch_inputs.device.type, enabled=False):
            return self.bbox_head(features.taps[0], features.class_token)

    def loss(self, batch_inputs: Tensor, batch_data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """Losses of the head."""
        bank = self._active_bank(batch_inputs.device)
        shape = tuple(batch_inputs.shape[-2:])
        predictions = self.extract_feat(batch_inputs)
        losses: dict[str, Tensor] = self.bbox_head.loss(predictions, batch_data_samples, shape, bank, self.policy)
        return losses

    def predict(self, batch_inputs: Tensor, batch_data_samples: Any, rescale: bool = True) -> Any:
        """Detections in ``pred_instances``."""
        bank = self._active_bank(batch_inputs.device)
        shape = tuple(batch_inputs.shape[-2:])
        predictions = self.extract_feat(batch_inputs)
        results = self.bbox_head.predict(predictions, batch_data_samples, shape, bank, self.policy, rescale)
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: Any = None) -> tuple[Tensor, ...]:
        """Class vectors and boxes of all tokens."""
        predictions = self.extract_feat(batch_inputs)
        return predictions.vectors, predictions.boxes
