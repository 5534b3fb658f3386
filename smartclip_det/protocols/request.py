"""What an evaluation is asked for, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Readings of ov-coco: one run over base and novel classes (``joint``), or the older, easier one in which the
#: detector was given the novel names alone (``target-only``); the two are never comparable.
SETTINGS = ("joint", "target-only")
#: Protocols whose classes are sentences have settings of their own: D-cube asks an image for its sentences, or for all.
SENTENCE_SETTINGS: dict[str, tuple[str, ...]] = {"dcube": ("intra", "inter"), "fgovd": ("joint",)}


def settings_of(protocol: str) -> tuple[str, ...]:
    """Readings of a detection protocol, its default first."""
    return SENTENCE_SETTINGS.get(protocol, SETTINGS)


@dataclass(frozen=True)
class EvaluationRequest:
    """What ``tools/evaluate.py`` was asked for.

    Attributes:
        protocol: a name in :data:`PROTOCOLS`.
        ann: annotation file, or VOC xml folder.
        pred: prediction file.
        split_file: json ``{"base": [...], "novel": [...]}`` for ov-coco with own classes.
        backend: ``fast`` or ``reference``.
        iou_type: ``bbox`` or ``segm``.
        max_dets: detections per image; 0 for the protocol's own (COCO 100, LVIS 300).
        split: split of a referring-expression file; empty for all sentences.
        instances: ``instances.json`` of a refs file; empty for the one beside it.
        overlap: ``iou`` or ``giou`` for referring expressions; empty for the protocol's own.
        strict: hits need overlap > threshold.
        box_format: ``xyxy`` or ``xywh`` of grounding predictions.
        images: ``all`` images of a detection file, ``annotated``: those with a box of the protocol's classes, or
            ``predicted``: those that a ``.jsonl`` file of an unfinished run has a line for.
        setting: of ``ov-coco``, one of :data:`SETTINGS`.
        difficult: VOC objects marked difficult: ``count`` or ``ignore``.
        score_threshold: boxes of grefcoco below it are not predicted.
        box_rule: of flickr, ``any`` or ``merged``.
        scenario: of dcube, ``intra`` or ``inter``.
        scoring: of a comparison of retrieval, a name in :data:`core.mask_modes.SCORINGS`.
    """

    protocol: str
    ann: Path
    pred: Path
    split_file: Path | None = None
    backend: str = "fast"
    iou_type: str = "bbox"
    max_dets: int = 0
    split: str = ""
    instances: str = ""
    overlap: str = ""
    strict: bool = False
    box_format: str = "xyxy"
    images: str = "all"
    setting: str = "joint"
    difficult: str = "count"
    scoring: str = "plain"
    score_threshold: float = 0.7
    box_rule: str = "any"
    scenario: str = "intra"


@dataclass
class EvaluationResult:
    """Stamp, metrics, and what goes beside them."""

    protocol: dict[str, Any]
    metrics: dict[str, float]
    counts: dict[str, int]
    per_class: dict[str, float | None] = field(default_factory=dict)
