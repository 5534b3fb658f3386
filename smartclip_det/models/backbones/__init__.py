"""Image towers as MMDetection backbones."""

from smartclip_det.models.backbones.smartclip_vit import SmartCLIPViT

__all__ = ["SmartCLIPViT"]
