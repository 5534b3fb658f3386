"""Loss modules on top of ``core.contrastive``."""

from smartclip_det.models.losses.alignment_loss import AlignmentLoss

__all__ = ["AlignmentLoss"]
