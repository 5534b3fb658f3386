"""RPN and one-stage heads."""

from smartclip_det.models.dense_heads.normed_rpn_head import NormedRPNHead
from smartclip_det.models.dense_heads.owl_head import OWLHead

__all__ = ["NormedRPNHead", "OWLHead"]
