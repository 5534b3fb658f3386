"""What users call from Python."""

from smartclip_det.apis.answers import Detections, Explanation
from smartclip_det.apis.families.base import EncodedImage
from smartclip_det.apis.former_names import ReferringPredictor, SmartCLIPPredictor
from smartclip_det.apis.predictor import Predictor

__all__ = ["Detections", "EncodedImage", "Explanation", "Predictor", "ReferringPredictor", "SmartCLIPPredictor"]
