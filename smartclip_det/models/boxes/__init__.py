"""Sources of class-agnostic boxes for training-free detection."""

from smartclip_det.models.boxes.base import BoxSource, Photograph, ScoredBoxes, checked_boxes
from smartclip_det.models.boxes.files import FileBoxes
from smartclip_det.models.boxes.rpn import TorchvisionBoxes
from smartclip_det.models.boxes.zero_shot import TransformersBoxes

__all__ = [
    "BoxSource",
    "FileBoxes",
    "Photograph",
    "ScoredBoxes",
    "TorchvisionBoxes",
    "TransformersBoxes",
    "checked_boxes",
]
