"""The former name of :mod:`smartclip_det.register_alignment`, for saved configs; it goes with the next version."""

import warnings

from smartclip_det.register_alignment import *  # noqa: F403

warnings.warn(
    "smartclip_det.alignment_parts is now smartclip_det.register_alignment: change custom_imports of the config.",
    FutureWarning,
    stacklevel=2,
)
