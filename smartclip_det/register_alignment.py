"""Importing this module registers the modules of alignment runs; neither mmdet nor mmcv is needed.

Configs name it in ``custom_imports`` (``configs/_base_/alignment_runtime.py``). Detection has
``smartclip_det.register_detection``.
"""

from smartclip_det.datasets import caption_batch, captions
from smartclip_det.engine import (
    alignment_hooks,
    alignment_optim,
    atomic_files,
    data_hooks,
    finite_guard,
    optim,
    region_probe_hook,
    resuming,
    sharding,
    stream_loop,
    stream_sampler,
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
    "data_hooks",
    "finite_guard",
    "optim",
    "region_probe_hook",
    "resuming",
    "sharding",
    "stream_loop",
    "stream_sampler",
]
