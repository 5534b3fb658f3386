"""The alignment model as an MMEngine model; needs neither mmdet nor mmcv."""

from smartclip_det.models.alignment.smartclip_alignment import SmartCLIPAlignment

__all__ = ["SmartCLIPAlignment"]
