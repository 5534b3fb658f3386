"""Importing this module registers the parts of alignment runs; neither mmdet nor mmcv is needed.

Configs name it in ``custom_imports`` (``configs/_base_/alignment_runtime.py``). Detection has ``smartclip_det.parts``.
"""

from smartclip_det.datasets import caption_batch, captions
from smartclip_det.engine import (
    alignment_hooks,
    alignment_optim,
    atomic_files,
    finite_guard,
    optim,
    region_guard,
    resuming,
    sharding,
    streams,
)
from smartclip_det.models import alignment
from smartclip_det.protocols import alignment_metric
from smartclip_det.utils import compat

compat.install_safe_loading()

__all__ = [
    "alignment",
    "alignment_hooks",
    "alignment_metric",
    "alignment_optim",
    "atomic_files",
    "caption_batch",
    "captions",
    "finite_guard",
    "optim",
    "region_guard",
    "resuming",
    "sharding",
    "streams",
]
