"""Names of :class:`Predictor` before there was one; they go with the next version."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smartclip_det.apis.families.referring import Referring
from smartclip_det.apis.predictor import Predictor
from smartclip_det.core.scoring_policy import ScoringPolicy


def _told(name: str) -> None:
    warnings.warn(
        f"{name} is now smartclip_det.Predictor; the old name goes with the next version.", FutureWarning, stacklevel=3
    )


class SmartCLIPPredictor(Predictor):
    """:class:`Predictor` of a two-stage detector."""

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
        """As before."""
        from smartclip_det.apis.families.detectors import TwoStage

        _told("SmartCLIPPredictor")
        family = TwoStage(detector, encoder, pipeline, policy=policy, cache_dir=cache_dir, precision=precision)
        super().__init__(family, templates=templates, parser=parser)

    @classmethod
    def from_config(cls, *args: Any, **options: Any) -> Predictor:
        """:meth:`Predictor.from_config`."""
        _told("SmartCLIPPredictor")
        return Predictor.from_config(*args, **options)


class ReferringPredictor(Predictor):
    """:class:`Predictor` of a trained grounding head."""

    def __init__(self, model: Any, fit: str = "pad") -> None:
        """As before."""
        _told("ReferringPredictor")
        super().__init__(Referring(model, fit))

    @classmethod
    def from_config(cls, *args: Any, **options: Any) -> Predictor:
        """:meth:`Predictor.from_config`."""
        _told("ReferringPredictor")
        return Predictor.from_config(*args, **options)
