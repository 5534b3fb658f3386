"""Registered wrappers of the loss mathematics in ``core``."""

from smartclip_det.models.losses.alignment_loss import AlignmentLoss

__all__ = ["AlignmentLoss"]
