"""smartclip_det: open-vocabulary detection and grounding with text-conditioned CLIP encoders.

>>> from smartclip_det import SmartCLIP, TextBank, ScoringPolicy, masked_cosine

Importing the package imports nothing heavy: a name's module is imported when the name is first used. It lets
MMDetection find its operators in :mod:`smartclip_det.operators` where none are compiled. Parts register when their own
package is imported (see ``custom_imports`` in ``configs/_base_/default_runtime.py``).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from smartclip_det.operators import finder as _finder
from smartclip_det.version import __version__

if TYPE_CHECKING:
    from smartclip_det.apis.classification import ClassifyOptions, classify
    from smartclip_det.apis.deprecated import ReferringPredictor, SmartCLIPPredictor
    from smartclip_det.apis.detections import Detections
    from smartclip_det.apis.fine_tuning import FineTuneOptions, fine_tune
    from smartclip_det.apis.grounding import ground_expressions
    from smartclip_det.apis.grounding_options import (
        ExpressionOptions,
        GroundOptions,
        ProposalOptions,
        ReadingOptions,
    )
    from smartclip_det.apis.predictor import Predictor
    from smartclip_det.apis.region_encoding import RegionEncoding
    from smartclip_det.apis.rescoring import InputBoxes, RescoreFileOptions, rescore_file
    from smartclip_det.apis.retrieval import RetrieveOptions, retrieve
    from smartclip_det.core.errors import UserError
    from smartclip_det.core.scoring_policy import ScoringPolicy
    from smartclip_det.core.similarity import masked_cosine
    from smartclip_det.core.text_bank import TextBank
    from smartclip_det.models.towers.smartclip import SmartCLIP
    from smartclip_det.models.vocabulary import build_bank

_finder.install()

#: Module of each name, below this package.
_HOMES = {
    "ClassifyOptions": "apis.classification",
    "Detections": "apis.detections",
    "ExpressionOptions": "apis.grounding_options",
    "FineTuneOptions": "apis.fine_tuning",
    "GroundOptions": "apis.grounding_options",
    "InputBoxes": "apis.rescoring",
    "Predictor": "apis.predictor",
    "ProposalOptions": "apis.grounding_options",
    "ReadingOptions": "apis.grounding_options",
    "ReferringPredictor": "apis.deprecated",
    "RegionEncoding": "apis.region_encoding",
    "RescoreFileOptions": "apis.rescoring",
    "RetrieveOptions": "apis.retrieval",
    "ScoringPolicy": "core.scoring_policy",
    "SmartCLIP": "models.towers.smartclip",
    "SmartCLIPPredictor": "apis.deprecated",
    "TextBank": "core.text_bank",
    "UserError": "core.errors",
    "build_bank": "models.vocabulary",
    "classify": "apis.classification",
    "fine_tune": "apis.fine_tuning",
    "ground_expressions": "apis.grounding",
    "masked_cosine": "core.similarity",
    "rescore_file": "apis.rescoring",
    "retrieve": "apis.retrieval",
}

__all__ = [
    "ClassifyOptions",
    "Detections",
    "ExpressionOptions",
    "FineTuneOptions",
    "GroundOptions",
    "InputBoxes",
    "Predictor",
    "ProposalOptions",
    "ReadingOptions",
    "ReferringPredictor",
    "RegionEncoding",
    "RescoreFileOptions",
    "RetrieveOptions",
    "ScoringPolicy",
    "SmartCLIP",
    "SmartCLIPPredictor",
    "TextBank",
    "UserError",
    "__version__",
    "build_bank",
    "classify",
    "fine_tune",
    "ground_expressions",
    "masked_cosine",
    "rescore_file",
    "retrieve",
]


def __getattr__(name: str) -> Any:
    """A name of the face, from its module (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """What ``import`` and completion see."""
    return sorted({*globals(), *__all__})
