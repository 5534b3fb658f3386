"""Options of zero-shot grounding, grouped by what they describe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smartclip_det.apis.region_encoding import RegionEncoding
from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.words import CONTROLS


@dataclass(frozen=True)
class ExpressionOptions:
    """Which expressions are grounded.

    Attributes:
        ann: expressions: JSON lines, MDETR json, or refs pickle.
        images: image folder.
        split: split to use; None: all.
        answers: ``one``: only sentences with one target; ``all``: also those with no or several targets.
        limit: use only the first N sentences; 0: all.
    """

    ann: str | Path
    images: str | Path
    split: str | None = None
    answers: str = "one"
    limit: int = 0

    def __post_init__(self) -> None:
        check_choice("answers", self.answers, ("one", "all"))


@dataclass(frozen=True)
class ProposalOptions:
    """Which boxes are candidates.

    Attributes:
        source: ``ground-truth``, ``rpn``, ``detector``, a COCO result list, or JSON lines of grounding predictions.
        instances: COCO annotations that provide the ground-truth proposals; None: the target boxes of the expressions.
        config: config of the detector for ``rpn`` and ``detector``.
        checkpoint: weights of ``config``.
        cfg_options: overrides of ``config``.
        limit: proposals per image, by score.
        detector_weight: exponent of the proposals' scores; 0: not used.
    """

    source: str = "ground-truth"
    instances: str | None = None
    config: str | None = None
    checkpoint: str | None = None
    cfg_options: Mapping[str, Any] | None = None
    limit: int = 20
    detector_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.source in ("rpn", "detector") and not (self.config and self.checkpoint):
            raise UserError(f"--proposals {self.source} needs --config and --checkpoint.")


@dataclass(frozen=True)
class ReadingOptions:
    """How an expression becomes text vectors.

    Attributes:
        reading: ``expression``, ``chunks`` or ``both``, see :class:`ZeroShotGrounder`.
        parser: ``auto`` (spaCy if an English pipeline is installed, else rules), ``rules``, or a spaCy pipeline.
        control: ``none``, or ``text_shuffled``: permute the text vectors, a chance control.
        subtract: captions whose mean score is subtracted from the score of each region; None: nothing is subtracted.
        subtract_count: number of captions sampled from ``subtract``.
        seed: seed of the sample.
    """

    reading: str = "expression"
    parser: str = "auto"
    control: str = "none"
    subtract: str | None = None
    subtract_count: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("control", self.control, CONTROLS)


@dataclass(frozen=True)
class GroundOptions:
    """Options of zero-shot grounding of a file of expressions.

    Attributes:
        expressions: the expressions and their images.
        encoder: encoder and region vectors.
        proposals: candidate boxes.
        reading: how expressions are read.
        mask_modes: mask modes; each is scored and written.
        policy: temperature, and with ``answers="all"`` presence; ``mask_modes`` replaces its ``mask_mode``.
        margin: with ``answers="all"``: score margin over the background.
        nms: with ``answers="all"``: IoU above which the lower-scored box is suppressed.
        out: predictions file, with ``.metrics.json`` next to it; None: nothing is written.
    """

    expressions: ExpressionOptions
    encoder: RegionEncoding
    proposals: ProposalOptions = field(default_factory=ProposalOptions)
    reading: ReadingOptions = field(default_factory=ReadingOptions)
    mask_modes: Sequence[str] = ("hard",)
    policy: ScoringPolicy = field(default_factory=ScoringPolicy)
    margin: bool = False
    nms: float = 0.7
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.every_sentence and self.proposals.detector_weight:
            raise UserError("A detector weight ranks the boxes of one answer; it does not apply to --answers all.")
        if self.policy.presence and not self.every_sentence:
            raise UserError(
                "Presence decides whether an expression has a target, not which box it is; it requires --answers all."
            )

    @property
    def every_sentence(self) -> bool:
        """Whether sentences with no or several targets are grounded too."""
        return self.expressions.answers == "all"
