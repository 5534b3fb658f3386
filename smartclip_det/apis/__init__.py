"""The Python API."""

from smartclip_det.apis.deprecated import ReferringPredictor, SmartCLIPPredictor
from smartclip_det.apis.detections import Detections
from smartclip_det.apis.explanation import Explanation
from smartclip_det.apis.families.base import EncodedImage
from smartclip_det.apis.predictor import Predictor

__all__ = ["Detections", "EncodedImage", "Explanation", "Predictor", "ReferringPredictor", "SmartCLIPPredictor"]
