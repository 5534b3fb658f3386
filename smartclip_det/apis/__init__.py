"""What users call from Python."""

from smartclip_det.apis.predictor import Detections, Explanation, SmartCLIPPredictor
from smartclip_det.apis.referring_predictor import ReferringPredictor

__all__ = ["Detections", "Explanation", "ReferringPredictor", "SmartCLIPPredictor"]
