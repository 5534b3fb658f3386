"""The protocols of ``tools/evaluate.py`` whose unit is a sentence: grounding, referring segmentation, descriptions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from smartclip_det.core.errors import UserError
from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.formats.expressions.fgovd import load_fgovd, read_caption_scores
from smartclip_det.formats.expressions.loading import load_expressions
from smartclip_det.formats.expressions.predictions import (
    check_known,
    load_grounding_predictions,
    load_mask_predictions,
)
from smartclip_det.formats.expressions.record import Expression
from smartclip_det.formats.predictions import check_predictions, read_predictions
from smartclip_det.metrics.described_objects import dcube_metrics, fgovd_map, fgovd_metrics
from smartclip_det.metrics.generalized_referring import MaskPair, grec_metrics, gres_metrics, phrase_recall, ris_metrics
from smartclip_det.metrics.ref_l4 import SIZES, ref_l4_metrics
from smartclip_det.metrics.referring import ReferringScores, referring_metrics, score_referring
from smartclip_det.protocols.request import EvaluationRequest, EvaluationResult
from smartclip_det.protocols.stamp import protocol_stamp


def _expressions(request: EvaluationRequest) -> list[Expression]:
    return load_expressions(request.ann, split=request.split or None, instances=request.instances or None)


def referring_scores(request: EvaluationRequest, pred: Path) -> ReferringScores:
    """Overlaps of one prediction file with single targets."""
    found = load_grounding_predictions(pred, request.box_format)
    return score_referring(_expressions(request), found, request.overlap or "iou")


def _refcoco(request: EvaluationRequest) -> EvaluationResult:
    scores = referring_scores(request, request.pred)
    stamp = protocol_stamp("refcoco", overlap=request.overlap or "iou", strict=request.strict,
                           split=request.split or "all", unit="sentence, best-scored box")  # fmt: skip
    return EvaluationResult(stamp, referring_metrics(scores.overlap, strict=request.strict), scores.counts)


def _ref_l4(request: EvaluationRequest) -> EvaluationResult:
    truth = _expressions(request)
    scores = score_referring(truth, load_grounding_predictions(request.pred, request.box_format))
    stamp = protocol_stamp("ref-l4", overlap="iou", strict=True, split=request.split or "all", sizes=list(SIZES),
                           unit="sentence, best-scored box; class averages over merged classes")  # fmt: skip
    return EvaluationResult(stamp, ref_l4_metrics(truth, scores.overlap), scores.counts)


def _grefcoco(request: EvaluationRequest) -> EvaluationResult:
    overlap = request.overlap or "giou"
    metrics, counts = grec_metrics(
        _expressions(request), load_grounding_predictions(request.pred, request.box_format),
        score=request.score_threshold, overlap=overlap,
    )  # fmt: skip
    stamp = protocol_stamp("grefcoco", overlap=overlap, threshold=0.5, score_threshold=request.score_threshold,
                           split=request.split or "all", unit="sentence, all boxes kept")  # fmt: skip
    return EvaluationResult(stamp, metrics, counts)


def _flickr(request: EvaluationRequest) -> EvaluationResult:
    found = load_grounding_predictions(request.pred, request.box_format)
    metrics, counts = phrase_recall(_expressions(request), found, boxes=request.box_rule)
    stamp = protocol_stamp("flickr", boxes=request.box_rule, overlap="iou", threshold=0.5,
                           split=request.split or "all", unit="phrase")  # fmt: skip
    return EvaluationResult(stamp, metrics, counts)


def _mask_pairs(request: EvaluationRequest, several: bool) -> tuple[list[MaskPair], dict[str, int]]:
    truth, found = _expressions(request), load_mask_predictions(request.pred)
    check_known(truth, found)
    bare = [e.id for e in truth if len(e.masks) != len(e.boxes) or not e.width]
    if bare:
        raise UserError(f"{len(bare)} sentences have boxes without masks, or no image size, e.g. id {bare[0]!r}.")
    if not several and any(not e.masks for e in truth):
        raise UserError("refseg needs a target for every sentence; with sentences of none the protocol is grefseg.")
    pairs = [MaskPair.of(e.masks, found.get(e.id), (e.height, e.width), e.id) for e in truth]
    return pairs, {"sentences": len(truth), "missing": sum(e.id not in found for e in truth)}


def _refseg(request: EvaluationRequest) -> EvaluationResult:
    pairs, counts = _mask_pairs(request, several=False)
    stamp = protocol_stamp("refseg", split=request.split or "all", unit="sentence, one mask")
    return EvaluationResult(stamp, ris_metrics(pairs), counts)


def _grefseg(request: EvaluationRequest) -> EvaluationResult:
    pairs, counts = _mask_pairs(request, several=True)
    stamp = protocol_stamp("grefseg", split=request.split or "all", unit="sentence, one mask or none",
                           giou="mean IoU of sentences")  # fmt: skip
    return EvaluationResult(stamp, gres_metrics(pairs), counts)


def _dcube(request: EvaluationRequest) -> EvaluationResult:
    truth = load_ground_truth(request.ann)
    results, _ = check_predictions(read_predictions(request.pred, truth), truth, request.iou_type)
    metrics, per_class, counts = dcube_metrics(truth, results, request.scenario, request.backend)
    stamp = protocol_stamp("dcube", ap="COCO, IoU 0.5:0.95, a sentence is a class", scenario=request.scenario,
                           backend=request.backend, sentences=len(per_class))  # fmt: skip
    return EvaluationResult(stamp, metrics, counts, per_class)


def _fgovd(request: EvaluationRequest) -> EvaluationResult:
    """Ranks for JSON lines of caption scores, mAP for a COCO result list."""
    if request.pred.suffix == ".json":
        load_fgovd(request.ann)
        truth = load_ground_truth(request.ann)
        results, _ = check_predictions(read_predictions(request.pred, truth), truth, "bbox")
        metrics, per_class, counts = fgovd_map(truth, results, backend=request.backend)
        stamp = protocol_stamp("fgovd", ap="COCO, IoU 0.5:0.95, a caption is a class", backend=request.backend,
                               nms="0.5 across the captions of an object")  # fmt: skip
        return EvaluationResult(stamp, metrics, counts, per_class)
    metrics, counts = fgovd_metrics(load_fgovd(request.ann), read_caption_scores(request.pred))
    stamp = protocol_stamp("fgovd", unit="object on its own box, rank among its negatives", ties="against")
    return EvaluationResult(stamp, metrics, counts)


GROUNDING: dict[str, Callable[[EvaluationRequest], EvaluationResult]] = {
    "refcoco": _refcoco,
    "grefcoco": _grefcoco,
    "ref-l4": _ref_l4,
    "flickr": _flickr,
    "refseg": _refseg,
    "grefseg": _grefseg,
    "dcube": _dcube,
    "fgovd": _fgovd,
}
