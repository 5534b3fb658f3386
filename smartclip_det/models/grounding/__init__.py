"""Referring expressions: parsing, zero-shot scoring, and trained heads."""

from smartclip_det.models.grounding.dependency import SpacyReader, default_reader
from smartclip_det.models.grounding.parsing import Entity, parse_expression
from smartclip_det.models.grounding.referring import SmartCLIPReferring
from smartclip_det.models.grounding.zero_shot import ZeroShotGrounder

__all__ = ["Entity", "SmartCLIPReferring", "SpacyReader", "ZeroShotGrounder", "default_reader", "parse_expression"]
