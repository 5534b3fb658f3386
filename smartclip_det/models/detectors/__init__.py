"""Open-vocabulary detectors."""

from smartclip_det.models.detectors.open_vocab_owl import OpenVocabOWL
from smartclip_det.models.detectors.open_vocab_rcnn import OpenVocabRCNN
from smartclip_det.models.detectors.rescoring_detector import RescoringDetector
from smartclip_det.models.detectors.smartclip_grounding_dino import SmartCLIPGroundingDINO

__all__ = ["OpenVocabOWL", "OpenVocabRCNN", "RescoringDetector", "SmartCLIPGroundingDINO"]
