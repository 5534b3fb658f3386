"""Deprecated names of :class:`Predictor`, to be removed in the next version."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smartclip_det.apis.families.referring import Referring
from smartclip_det.apis.predictor import Predictor
from smartclip_det.core.scoring_policy import ScoringPolicy


def _warn(name: str) -> None:
    warnings.warn(
        f"{name} is now smartclip_det.Predictor; the old name will be removed in the next version.",
        FutureWarning,
        stacklevel=3,
    )


class SmartCLIPPredictor(Predictor):
    """Deprecated: :class:`Predictor` of a two-stage detector."""

    def __init__(
        self,
        detector: Any,
        encoder: Any,
        pipeline: Any,
        *,
        templates: str | Sequence[str] = "photo",
        policy: ScoringPolicy | None = None,
        cache_dir: str | Path | None = None,
        parser: str = "auto",
        precision: str = "fp32",
    ) -> None:
        """Take the old arguments."""
        from smartclip_det.apis.families.detectors import TwoStage

        _warn("SmartCLIPPredictor")
        family = TwoStage(detector, encoder, pipeline, policy=policy, cache_dir=cache_dir, precision=precision)
        super().__init__(family, templates=templates, parser=parser)

    @classmethod
    def from_config(cls, *args: Any, **options: Any) -> Predictor:
        """Call :meth:`Predictor.from_config`."""
        _warn("SmartCLIPPredictor")
        return Predictor.from_config(*args, **options)


class ReferringPredictor(Predictor):
    """Deprecated: :class:`Predictor` of a trained grounding head."""

    def __init__(self, model: Any, fit: str = "pad") -> None:
        """Take the old arguments."""
        _warn("ReferringPredictor")
        super().__init__(Referring(model, fit))

    @classmethod
    def from_config(cls, *args: Any, **options: Any) -> Predictor:
        """Call :meth:`Predictor.from_config`."""
        _warn("ReferringPredictor")
        return Predictor.from_config(*args, **options)
