"""What users call from Python."""

from smartclip_det.apis.answers import Detections, Explanation
from smartclip_det.apis.predictor import EncodedImage, SmartCLIPPredictor
from smartclip_det.apis.referring_predictor import ReferringPredictor

__all__ = ["Detections", "EncodedImage", "Explanation", "ReferringPredictor", "SmartCLIPPredictor"]
