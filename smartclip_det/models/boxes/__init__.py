"""Where boxes come from, when nothing was trained to give them."""

from smartclip_det.models.boxes.base import BoxSource, FoundBoxes, Photograph, checked_boxes
from smartclip_det.models.boxes.files import FileBoxes
from smartclip_det.models.boxes.rpn import TorchvisionBoxes
from smartclip_det.models.boxes.zero_shot import TransformersBoxes

__all__ = [
    "BoxSource",
    "FileBoxes",
    "FoundBoxes",
    "Photograph",
    "TorchvisionBoxes",
    "TransformersBoxes",
    "checked_boxes",
]
