"""Necks for plain vision transformers."""

from smartclip_det.models.necks.tap_pyramid import TapPyramid

__all__ = ["TapPyramid"]
