"""What users call from Python."""

from smartclip_det.apis.predictor import Detections, Explanation, SmartCLIPPredictor

__all__ = ["Detections", "Explanation", "SmartCLIPPredictor"]
