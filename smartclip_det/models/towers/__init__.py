"""Image and text towers, mask network, tokenizer and checkpoints."""

from smartclip_det.models.towers.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from smartclip_det.models.towers.config import ARCHITECTURES, TowerConfig, architecture
from smartclip_det.models.towers.smartclip import SmartCLIP, TextFeatures
from smartclip_det.models.towers.text_transformer import TextTransformer
from smartclip_det.models.towers.vision_transformer import DENSE_MODES, VisionOutput, VisionTransformer

__all__ = [
    "ARCHITECTURES",
    "DENSE_MODES",
    "Checkpoint",
    "SmartCLIP",
    "TextFeatures",
    "TextTransformer",
    "TowerConfig",
    "VisionOutput",
    "VisionTransformer",
    "architecture",
    "read_checkpoint",
    "write_checkpoint",
]
