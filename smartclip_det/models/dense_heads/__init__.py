"""Proposals and one-stage heads."""

from smartclip_det.models.dense_heads.normed_rpn_head import NormedRPNHead

__all__ = ["NormedRPNHead"]
