"""RoI head of two-stage open-vocabulary detectors."""

from smartclip_det.models.roi_heads.open_vocab_bbox_head import OpenVocabBBoxHead
from smartclip_det.models.roi_heads.open_vocab_roi_head import OpenVocabRoIHead

__all__ = ["OpenVocabBBoxHead", "OpenVocabRoIHead"]
