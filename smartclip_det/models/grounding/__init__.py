"""Referring expressions: scorers and parsing."""

from smartclip_det.models.grounding.parsing import ParsedExpression, parse_expression
from smartclip_det.models.grounding.zero_shot import ZeroShotGrounder

__all__ = ["ParsedExpression", "ZeroShotGrounder", "parse_expression"]
