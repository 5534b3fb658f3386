"""ScoringPolicy: every option between cosines and scores, in one frozen, validated, serialisable dataclass.

It is passed along with the text bank and recorded in every protocol stamp; heads take no such arguments themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from smartclip_det.core.errors import UserError, check_choice, nearest
from smartclip_det.core.similarity import MASK_MODES, TEXT_NORMS
from smartclip_det.core.words import ACTIVATIONS, BACKGROUNDS, PRESENCE_SOURCES, TEMPLATE_ORDERS

SIGMOID_REFERENCES = ("bias", "background")
DENSE_NORMS = ("pixel", "none")
CALIBRATIONS = ("none", "ceiling")


@dataclass(frozen=True)
class ScoringPolicy:
    """How class cosines become scores.

    Attributes:
        mask_mode: ``hard | soft | off`` or a control, ``random | shuffled``, for the head's region vectors.
        dense_mask_mode: the same for vectors pooled from the dense map; empty: use ``mask_mode``.
        text_norm: ``full`` (published) or ``masked`` (see ``similarity.masked_cosine``).
        activation: ``softmax`` couples the classes and is meant for protocol configs; ``sigmoid`` does not.
        temperature: multiplies head cosines before the activation.
        dense_temperature: multiplies dense cosines before the activation.
        sigmoid_reference: what a sigmoid compares a cosine with: only the ``bias``, or the cosine of the
            ``background``. The latter equals a softmax over {class, background} for each class separately, so a
            threshold of 0.5 means "more likely than background" whatever the other classes are.
        sigmoid_bias: added to ``temperature * cosine`` before a sigmoid; unused by softmax.
        template_order: how the templates of a class are combined; see ``models.vocabulary``.
        fusion: a name in ``fusion.FUSIONS``.
        alpha: exponent of the dense score for base classes; None: the default of the fusion.
        beta: exponent of the dense score for novel classes; None: the default of the fusion.
        background: the background column of a softmax: a ``zero`` logit, the ``text`` "background" with its own mask,
            the same text with a mask of ones (``text_ones``), or a ``learned`` vector.
        background_weight: loss weight of background, in (0, 1].
        dense_norm: ``pixel`` normalises each cell of the dense map before pooling (F-ViT), which discards the norm of
            the cells (saliency); ``none`` does not.
        calibration: ``ceiling`` divides each cosine by ``|t * m| / |t|``, the largest value that its text can reach.
        presence: exponent of the text's presence in the image, which multiplies its region scores; 0 disables it.
            Applies only to region vectors without trained heads, see :mod:`smartclip_det.core.presence`.
        presence_source: ``pooled``: the pooled image vector; ``cells``: the largest weighted cell of the dense map.
        presence_scale: multiplies the presence cosine before its sigmoid.
        presence_bias: added to it; ``smartclip-det study presence`` fits both.
    """

    mask_mode: str = "hard"
    dense_mask_mode: str = ""
    text_norm: str = "full"
    activation: str = "softmax"
    temperature: float = 50.0
    dense_temperature: float = 75.0
    sigmoid_reference: str = "bias"
    sigmoid_bias: float = 0.0
    template_order: str = "average_state"
    fusion: str = "none"
    alpha: float | None = None
    beta: float | None = None
    background: str = "text"
    background_weight: float = 1.0
    dense_norm: str = "pixel"
    calibration: str = "none"
    presence: float = 0.0
    presence_source: str = PRESENCE_SOURCES[0]
    presence_scale: float = 50.0
    presence_bias: float = 0.0

    def __post_init__(self) -> None:
        from smartclip_det.core.fusion import FUSIONS

        check_choice("mask_mode", self.mask_mode, MASK_MODES)
        check_choice("dense_mask_mode", self.dense_mask_mode, ("", *MASK_MODES))
        check_choice("text_norm", self.text_norm, TEXT_NORMS)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("sigmoid_reference", self.sigmoid_reference, SIGMOID_REFERENCES)
        check_choice("template_order", self.template_order, TEMPLATE_ORDERS)
        check_choice("fusion", self.fusion, FUSIONS)
        check_choice("background", self.background, BACKGROUNDS)
        check_choice("dense_norm", self.dense_norm, DENSE_NORMS)
        check_choice("calibration", self.calibration, CALIBRATIONS)
        check_choice("presence_source", self.presence_source, PRESENCE_SOURCES)
        self._check_numbers()
        binary_only = self.text_norm == "masked" or self.calibration == "ceiling"
        if binary_only and "soft" in (self.mask_mode, self.dense_mode):
            raise UserError(
                "soft masks need text_norm='full' and calibration='none': |t * m| bounds the cosine for binary masks "
                "only, so scores would leave [-1, 1]."
            )

    def _check_numbers(self) -> None:
        for name in (
            "temperature",
            "dense_temperature",
            "background_weight",
            "sigmoid_bias",
            "alpha",
            "beta",
            "presence",
            "presence_scale",
            "presence_bias",
        ):
            value = getattr(self, name)
            if value is None and name in ("alpha", "beta"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise UserError(f"{name} must be a number; given {value!r}.")
            if name in ("temperature", "dense_temperature", "presence_scale") and value <= 0:
                raise UserError(f"{name} must be a positive number; given {value!r}.")
            if name == "background_weight" and not 0 < value <= 1:
                raise UserError(f"background_weight must be in (0, 1]; given {value!r}.")
            if name == "presence" and not 0 <= value <= 10:
                raise UserError(f"presence must be an exponent in [0, 10] (0 disables it); given {value!r}.")
            if name in ("alpha", "beta") and not 0 <= value <= 1:
                raise UserError(f"{name} must be in [0, 1] or None; given {value!r}.")

    @property
    def dense_mode(self) -> str:
        """Mask mode of the dense branch."""
        return self.dense_mask_mode or self.mask_mode

    @property
    def fuses(self) -> bool:
        """Whether scores of the dense map are needed."""
        return self.fusion != "none"

    def without_presence(self, what: str) -> ScoringPolicy:
        """Return the policy unchanged; for components that do not support presence.

        Raises:
            UserError: if the policy sets ``presence``.
        """
        if self.presence:
            raise UserError(
                f"{what} have their own scores and do not support presence={self.presence}: set presence=0, or "
                "use region vectors without heads (rescore, ground, RescoringDetector, Predictor with boxes=...)."
            )
        return self

    def with_(self, **changes: Any) -> ScoringPolicy:
        """A validated copy with some values changed; unknown names raise, with the closest ones."""
        return ScoringPolicy.from_dict({**asdict(self), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for protocol stamps and configs."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any] | ScoringPolicy | None) -> ScoringPolicy:
        """Build a policy from a config dict.

        Raises:
            UserError: for an unknown key (with the closest known ones) or a value out of range.
        """
        if values is None:
            return ScoringPolicy()
        if isinstance(values, ScoringPolicy):
            return replace(values)
        known = [f.name for f in fields(ScoringPolicy)]
        for key in values:
            if key not in known:
                raise UserError(
                    f"Unknown policy key {key!r}. Nearest: {', '.join(nearest(key, known)) or 'none'}. "
                    f"Known: {', '.join(known)}."
                )
        return ScoringPolicy(**dict(values))
