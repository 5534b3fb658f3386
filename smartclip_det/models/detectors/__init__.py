"""Open-vocabulary detectors: wiring only."""

from smartclip_det.models.detectors.open_vocab_rcnn import OpenVocabRCNN

__all__ = ["OpenVocabRCNN"]
