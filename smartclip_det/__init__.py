"""smartclip_det: open-vocabulary detection and grounding with text-conditioned CLIP encoders.

Importing the package imports nothing heavy; it lets MMDetection find its operators in
:mod:`smartclip_det.operators` where none are compiled. Parts register when their own package is imported
(see ``custom_imports`` in ``configs/_base_/default_runtime.py``).
"""

from smartclip_det.operators import finder as _finder
from smartclip_det.version import __version__

_finder.install()

__all__ = ["__version__"]
