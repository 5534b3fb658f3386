"""The former name of :mod:`smartclip_det.register_detection`, for saved configs; it goes with the next version."""

import warnings

from smartclip_det.register_detection import *  # noqa: F403

warnings.warn(
    "smartclip_det.parts is now smartclip_det.register_detection: change custom_imports of the config.",
    FutureWarning,
    stacklevel=2,
)
