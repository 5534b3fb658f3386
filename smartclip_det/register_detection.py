"""Importing this module registers every module of smartclip_det with MMDetection and MMEngine.

Configs name it in ``custom_imports`` (``configs/_base_/default_runtime.py``). It also checks the library versions
and makes checkpoint loading safe.
"""

from smartclip_det.utils import compat

compat.check_stack()
compat.install_safe_loading()
compat.install_language_routes()
compat.install_recomputation()

from smartclip_det import engine  # noqa: E402
from smartclip_det.datasets import open_vocab_coco, referring  # noqa: E402
from smartclip_det.engine import alignment_hooks  # noqa: E402
from smartclip_det.models import backbones, dense_heads, detectors, grounding, necks, roi_heads  # noqa: E402
from smartclip_det.protocols import detection_metric, referring_metric  # noqa: E402

__all__ = [
    "alignment_hooks",
    "backbones",
    "dense_heads",
    "detection_metric",
    "detectors",
    "engine",
    "grounding",
    "necks",
    "open_vocab_coco",
    "referring",
    "referring_metric",
    "roi_heads",
]
