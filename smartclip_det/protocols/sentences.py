"""Protocols over sentences: referring expressions, phrases, referring segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from smartclip_det.core.errors import UserError
from smartclip_det.formats.expressions.loading import load_expressions
from smartclip_det.formats.expressions.predictions import (
    check_known,
    load_grounding_predictions,
    load_mask_predictions,
)
from smartclip_det.formats.expressions.record import Expression
from smartclip_det.metrics import bootstrap
from smartclip_det.metrics.generalized_referring import MaskPair, grec_metrics, gres_metrics, phrase_recall, ris_metrics
from smartclip_det.metrics.ref_l4 import SIZES, ref_l4_metrics
from smartclip_det.metrics.referring import referring_metrics, score_referring
from smartclip_det.protocols.base import Material, Protocol, Scores
from smartclip_det.protocols.options import (
    BoxedSentenceOptions,
    FlickrOptions,
    GrefcocoOptions,
    RefcocoOptions,
    SentenceOptions,
)

S = TypeVar("S", bound=SentenceOptions)
B = TypeVar("B", bound=BoxedSentenceOptions)
#: Minimum overlap of a hit.
_HIT = 0.5


def expressions_of(ann: Path, options: SentenceOptions) -> list[Expression]:
    """Sentences of the split."""
    split = None if options.split == "all" else options.split
    return load_expressions(ann, split=split, instances=options.instances, needs_sentences=False)


class _Boxes(Protocol[B]):
    """Predictions are JSON lines of boxes and scores."""

    def read(self, ann: Path, pred: Path, options: B) -> Material:
        """Read sentences, and boxes by sentence in descending score order."""
        return Material(expressions_of(ann, options), load_grounding_predictions(pred, options.box_format))


class Refcoco(_Boxes[RefcocoOptions]):
    """``refcoco``: accuracy of the best-scored box."""

    def score(self, material: Material, options: RefcocoOptions) -> Scores:
        """Accuracies by IoU threshold."""
        scores = score_referring(material.truth, material.found, options.overlap)
        return Scores(referring_metrics(scores.overlap, strict=options.strict), scores.counts)

    def facts(self, material: Material, options: RefcocoOptions) -> dict[str, Any]:
        """Definition of the metrics, for the stamp."""
        return {"unit": "sentence, best-scored box"}

    def resampled(self, material: Material, options: RefcocoOptions) -> tuple[bootstrap.Metric, int]:
        """Accuracies by IoU threshold."""
        scores = score_referring(material.truth, material.found, options.overlap)
        return bootstrap.referring_metric(scores.overlap, scores.images, strict=options.strict)


class RefL4(_Boxes[BoxedSentenceOptions]):
    """``ref-l4``: accuracy by object size, and averaged over classes."""

    def score(self, material: Material, options: BoxedSentenceOptions) -> Scores:
        """Accuracies by IoU threshold, size and class."""
        scores = score_referring(material.truth, material.found, "iou")
        return Scores(ref_l4_metrics(material.truth, scores.overlap), scores.counts)

    def facts(self, material: Material, options: BoxedSentenceOptions) -> dict[str, Any]:
        """Definition of the metrics, for the stamp."""
        return {
            "overlap": "iou",
            "strict": True,
            "sizes": list(SIZES),
            "unit": "sentence, best-scored box; class averages over merged classes",
        }


class Grefcoco(_Boxes[GrefcocoOptions]):
    """``grefcoco``: sentences with no target, one or several."""

    def score(self, material: Material, options: GrefcocoOptions) -> Scores:
        """GREC."""
        return Scores(
            *grec_metrics(
                material.truth, material.found, score=options.score_threshold, threshold=_HIT, overlap=options.overlap
            )
        )

    def facts(self, material: Material, options: GrefcocoOptions) -> dict[str, Any]:
        """Definition of the metrics, for the stamp."""
        return {"threshold": _HIT, "unit": "sentence, all boxes kept"}


class Flickr(_Boxes[FlickrOptions]):
    """``flickr``: phrase recall."""

    def score(self, material: Material, options: FlickrOptions) -> Scores:
        """Recall at 1, 5 and 10."""
        return Scores(*phrase_recall(material.truth, material.found, boxes=options.box_rule, threshold=_HIT))

    def facts(self, material: Material, options: FlickrOptions) -> dict[str, Any]:
        """Definition of the metrics, for the stamp."""
        return {"overlap": "iou", "threshold": _HIT, "unit": "phrase"}


class Masks(Protocol[SentenceOptions]):
    """Predictions are JSON lines with at most one mask."""

    def read(self, ann: Path, pred: Path, options: SentenceOptions) -> Material:
        """Read sentences, and a mask by sentence."""
        return Material(expressions_of(ann, options), load_mask_predictions(pred))

    def pairs(self, material: Material) -> tuple[list[MaskPair], dict[str, int]]:
        """Pixel counts of each sentence, and counts of sentences."""
        truth, found = material.truth, material.found
        check_known(truth, found)
        bare = [e.id for e in truth if len(e.masks) != len(e.boxes) or not e.width]
        if bare:
            raise UserError(f"{len(bare)} sentences have boxes without masks, or no image size, e.g. id {bare[0]!r}.")
        pairs = [MaskPair.of(e.masks, found.get(e.id), (e.height, e.width), e.id) for e in truth]
        return pairs, {"sentences": len(truth), "missing": sum(e.id not in found for e in truth)}


class Refseg(Masks):
    """``refseg``: referring segmentation, one target per sentence."""

    def score(self, material: Material, options: SentenceOptions) -> Scores:
        """Overall and mean IoU, precision at thresholds."""
        if any(not e.masks and not e.boxes for e in material.truth):
            raise UserError("refseg needs a target for every sentence; grefseg supports sentences without one.")
        pairs, counts = self.pairs(material)
        return Scores(ris_metrics(pairs), counts)

    def facts(self, material: Material, options: SentenceOptions) -> dict[str, Any]:
        """Definition of the metrics, for the stamp."""
        return {"unit": "sentence, one mask"}


class Grefseg(Masks):
    """``grefseg``: referring segmentation including sentences without a target."""

    def score(self, material: Material, options: SentenceOptions) -> Scores:
        """GRES."""
        pairs, counts = self.pairs(material)
        return Scores(gres_metrics(pairs), counts)

    def facts(self, material: Material, options: SentenceOptions) -> dict[str, Any]:
        """Definition of the metrics, for the stamp."""
        return {"unit": "sentence, one mask or none", "giou": "mean IoU of sentences"}
