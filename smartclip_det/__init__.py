"""smartclip_det: open-vocabulary detection and grounding with text-conditioned CLIP encoders.

Importing the package imports nothing else; parts register when their own package is imported
(see ``custom_imports`` in ``configs/_base_/default_runtime.py``).
"""

from smartclip_det.version import __version__

__all__ = ["__version__"]
