"""The protocols of ``tools/evaluate.py``: annotations and saved predictions to stamped metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.vocabularies import OV_COCO_BASE, OV_COCO_NOVEL, check_split
from smartclip_det.formats.annotations import IMAGES, GroundTruth, annotated_only, load_ground_truth, with_images
from smartclip_det.formats.json_files import read_json
from smartclip_det.formats.lvis import check_lvis
from smartclip_det.formats.predictions import check_predictions, read_lines, read_predictions
from smartclip_det.formats.voc import load_voc_folder, number_voc_images
from smartclip_det.metrics import bootstrap
from smartclip_det.metrics.coco import coco_metrics, evaluate_tables, open_vocabulary_metrics
from smartclip_det.metrics.described_objects import dcube_metrics, fgovd_map
from smartclip_det.metrics.lvis import base_novel_metrics, evaluate_lvis
from smartclip_det.metrics.voc import evaluate_voc
from smartclip_det.protocols.grounding import GROUNDING, referring_scores
from smartclip_det.protocols.request import EvaluationRequest, EvaluationResult, settings_of
from smartclip_det.protocols.stamp import file_hash, protocol_stamp
from smartclip_det.utils.collector import without_collector

if TYPE_CHECKING:
    from smartclip_det.formats.retrieval_vectors import RetrievalVectors


def run_protocol(request: EvaluationRequest) -> EvaluationResult:
    """Score one prediction file.

    Raises:
        UserError: for unknown protocols and every bad input that the readers refuse.
    """
    check_choice("protocol", request.protocol, PROTOCOLS)
    with without_collector():
        result = PROTOCOLS[request.protocol](request)
    result.protocol["ann_sha256"] = file_hash(request.ann)
    result.protocol["pred_sha256"] = file_hash(request.pred)
    return result


def _truth_and_detections(
    request: EvaluationRequest,
) -> tuple[GroundTruth, Sequence[Mapping[str, Any]], dict[str, int]]:
    """Annotations, checked predictions and counts of a detection protocol."""
    if request.iou_type == "segm" and request.pred.suffix == ".safetensors":
        raise UserError("Columnar files hold boxes only; segm needs a COCO result list.")
    found: Sequence[Mapping[str, Any]]
    if request.protocol == "voc" and request.ann.is_dir():
        truth = load_voc_folder(request.ann)
        found = number_voc_images(read_predictions(request.pred, truth), truth)
    else:
        truth = load_ground_truth(request.ann)
        found = read_predictions(request.pred, truth)
    if request.protocol in LVIS_PROTOCOLS:
        check_lvis(truth)
    if request.images == "predicted":
        if request.pred.suffix != ".jsonl":
            raise UserError("--images predicted is for the .partial.jsonl file of an unfinished run, which lists them.")
        truth = with_images(truth, {row["image_id"] for row in read_lines(request.pred)})
    truth = chosen_images(truth, request.protocol, request.images, request.split_file)
    results, counts = check_predictions(found, truth, request.iou_type)
    return (
        truth,
        results,
        {"images": len(truth.data["images"]), "annotations": len(truth.data["annotations"]), **counts},
    )


LVIS_PROTOCOLS = ("lvis", "ov-lvis", "lvis-fixed")


def chosen_images(truth: GroundTruth, protocol: str, images: str, split_file: Path | None) -> GroundTruth:
    """All images, or the ``annotated`` ones: those with a box of the protocol's classes."""
    if check_choice("images", images, IMAGES) != "annotated":
        return truth
    names = [n for part in ov_coco_split(split_file)[:2] for n in part] if protocol == "ov-coco" else None
    return annotated_only(truth, names)


@dataclass
class DetectionScores:
    """Metrics of one detection protocol.

    Attributes:
        metrics: by their public names.
        per_class: AP of each class.
        max_dets: limits that were used.
    """

    metrics: dict[str, float]
    per_class: dict[str, float | None]
    max_dets: list[int]


def score_detections(
    protocol: str, truth: GroundTruth, results: Sequence[Mapping[str, Any]], *, backend: str = "fast",
    iou_type: str = "bbox", max_dets: int = 0, split_file: Path | None = None, setting: str = "joint",
) -> DetectionScores:  # fmt: skip
    """Score checked detections; ``tools/evaluate.py`` and the metrics of runs both come here.

    Args:
        protocol: ``coco | ov-coco | lvis | ov-lvis | lvis-fixed | dcube | fgovd``.
        truth: annotations.
        results: what ``check_predictions`` let through.
        backend: ``fast`` or ``reference``.
        iou_type: ``bbox`` or ``segm``.
        max_dets: detections per image, 0 for the protocol's own.
        split_file: own base and novel names for ``ov-coco``.
        setting: of ``ov-coco`` and ``dcube``, see ``request.settings_of``.
    """
    check_choice("setting", setting, settings_of(protocol))
    if protocol == "dcube":
        metrics, per_class, _ = dcube_metrics(truth, results, setting, backend)
        return DetectionScores(metrics, per_class, _limits(0))
    if protocol == "fgovd":
        metrics, per_class, _ = fgovd_map(truth, results, backend=backend)
        return DetectionScores(metrics, per_class, _limits(0))
    if protocol in LVIS_PROTOCOLS:
        fixed = protocol == "lvis-fixed"
        limit = max_dets or (-1 if fixed else 300)
        metrics, per_class = evaluate_lvis(
            truth, results, backend=backend, iou_type=iou_type, max_dets=limit, fixed=fixed
        )
        if protocol == "ov-lvis":
            metrics.update(base_novel_metrics(metrics, per_class, truth, iou_type))
        return DetectionScores(metrics, per_class, [limit])
    limits = _limits(max_dets)
    if protocol == "coco":
        tables = evaluate_tables(truth, results, backend=backend, iou_type=iou_type, max_dets=limits)
        return DetectionScores(coco_metrics(tables, iou_type), tables.class_ap(), limits)
    base, novel, _ = ov_coco_split(split_file)
    names = novel if setting == "target-only" else [*base, *novel]
    tables = evaluate_tables(truth, results, backend=backend, iou_type=iou_type, max_dets=limits, names=names)
    if setting == "target-only":
        metrics = {"target_only_novel_ap50": tables.ap(0.5)}
    else:
        metrics = {**open_vocabulary_metrics(tables, base, novel), f"{iou_type}_mAP": tables.ap()}
    return DetectionScores(metrics, tables.class_ap(0.5), limits)


def _scored(request: EvaluationRequest, truth: GroundTruth, results: Sequence[Mapping[str, Any]]) -> DetectionScores:
    return score_detections(
        request.protocol, truth, results, backend=request.backend, iou_type=request.iou_type,
        max_dets=request.max_dets, split_file=request.split_file, setting=request.setting,
    )  # fmt: skip


def _limits(max_dets: int) -> list[int]:
    if max_dets < 0:
        raise UserError(f"--max-dets {max_dets}: COCO protocols need a positive limit; only LVIS knows -1 (no limit).")
    last = max_dets or 100
    return [*(n for n in (1, 10) if n < last), last]


def _coco(request: EvaluationRequest) -> EvaluationResult:
    truth, results, counts = _truth_and_detections(request)
    found = _scored(request, truth, results)
    stamp = protocol_stamp(
        "coco", ap="COCO, IoU 0.5:0.95, 101 points", iou_type=request.iou_type, max_dets=found.max_dets,
        backend=request.backend, classes=len(found.per_class), images=request.images,
    )  # fmt: skip
    return EvaluationResult(stamp, found.metrics, counts, found.per_class)


def ov_coco_split(split_file: Path | None) -> tuple[list[str], list[str], str]:
    """Base and novel names and the name of the split: the published 48/17, or an own file."""
    if split_file is None:
        return list(OV_COCO_BASE), list(OV_COCO_NOVEL), "ov_coco_48_17"
    data = read_json(split_file, "split file")
    if not isinstance(data, dict) or not {"base", "novel"} <= set(data):
        raise UserError(f'{split_file} must hold {{"base": [names], "novel": [names]}}.')
    for part in ("base", "novel"):
        if not isinstance(data[part], list) or not all(isinstance(n, str) for n in data[part]):
            raise UserError(f"{split_file}: {part} must be a list of names.")
    base, novel = data["base"], data["novel"]
    check_split(base, novel)
    return base, novel, Path(split_file).stem


def _ov_coco(request: EvaluationRequest) -> EvaluationResult:
    base, novel, split = ov_coco_split(request.split_file)
    truth, results, counts = _truth_and_detections(request)
    found = _scored(request, truth, results)
    ids = set(truth.category_ids([*base, *novel]))
    counts["outside_vocabulary"] = sum(r["category_id"] not in ids for r in results)
    if request.setting == "target-only" and any(r["category_id"] in set(truth.category_ids(base)) for r in results):
        raise UserError(
            "The predictions hold base classes: they are of a joint run. target-only is for a detector that was given "
            "the novel names alone."
        )
    stamp = protocol_stamp(
        "ov-coco", ap="AP at IoU 0.5, 101 points, one joint run", iou_type=request.iou_type, max_dets=found.max_dets,
        backend=request.backend, split=split, images=request.images, setting=request.setting,
        vocabulary=len(novel) + (0 if request.setting == "target-only" else len(base)),
        base=len(base), novel=len(novel),
    )  # fmt: skip
    return EvaluationResult(stamp, found.metrics, counts, found.per_class)


_FIXED = ", fixed: best 10,000 of each class"


def _lvis(request: EvaluationRequest) -> EvaluationResult:
    fixed = request.protocol == "lvis-fixed"
    truth, results, counts = _truth_and_detections(request)
    found = _scored(request, truth, results)
    stamp = protocol_stamp(
        request.protocol, ap=f"LVIS, IoU 0.5:0.95, federated{_FIXED if fixed else ''}", iou_type=request.iou_type,
        max_dets=found.max_dets[-1], backend=request.backend, classes=len(found.per_class), images=request.images,
    )  # fmt: skip
    return EvaluationResult(stamp, found.metrics, counts, found.per_class)


def _voc(request: EvaluationRequest) -> EvaluationResult:
    truth, results, counts = _truth_and_detections(request)
    counts["difficult"] = sum(bool(a.get("difficult")) for a in truth.data["annotations"])
    metrics, per_class = evaluate_voc(truth, results, backend=request.backend, difficult=request.difficult)
    stamp = protocol_stamp("voc", ap="VOC, IoU 0.5, all-point and 11-point, inclusive pixels", backend=request.backend,
                           difficult=request.difficult)  # fmt: skip
    return EvaluationResult(stamp, metrics, counts, per_class)


def _retrieval(request: EvaluationRequest) -> EvaluationResult:
    from smartclip_det.metrics.retrieval import recall_metrics, scorings_of

    vectors = _checked_vectors(request, request.pred)
    stamp = protocol_stamp("retrieval", ties="against", **vectors.stamp)
    counts = {"images": len(vectors.images), "texts": len(vectors.texts)}
    return EvaluationResult(stamp, recall_metrics(vectors, scorings_of(vectors)), counts)


def _checked_vectors(request: EvaluationRequest, pred: Path) -> RetrievalVectors:
    # Vectors are torch's, and it takes seconds to import: only here.
    from smartclip_det.formats.retrieval_vectors import RetrievalVectors

    vectors = RetrievalVectors.load(pred)
    vectors.check_against(request.ann)
    return vectors


PROTOCOLS: dict[str, Callable[[EvaluationRequest], EvaluationResult]] = {
    "coco": _coco,
    "ov-coco": _ov_coco,
    "lvis": _lvis,
    "ov-lvis": _lvis,
    "lvis-fixed": _lvis,
    "voc": _voc,
    **GROUNDING,
    "retrieval": _retrieval,
}


def compare(
    request: EvaluationRequest, pred_a: Path, pred_b: Path, *, resamples: int = 1000, seed: int = 0,
    progress: bool = True,
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:  # fmt: skip
    """Paired bootstrap between two prediction files of one protocol.

    Returns:
        The stamp and, for each metric, what :func:`bootstrap.paired_bootstrap` tells.
    """
    check_choice("protocol", request.protocol, PROTOCOLS)
    metrics: list[bootstrap.Metric] = []
    images = 0
    for pred in (pred_a, pred_b):
        with without_collector():
            metric, images = _metric_of(request, pred)
        metrics.append(metric)
    outcome = bootstrap.paired_bootstrap(
        metrics[0], metrics[1], images, resamples=resamples, seed=seed, progress=progress
    )
    stamp = protocol_stamp(
        request.protocol, test="paired bootstrap over images", iou_type=request.iou_type, max_dets=request.max_dets,
        images=request.images, split=request.split, split_file=request.split_file and str(request.split_file),
        overlap=request.overlap, strict=request.strict, box_format=request.box_format, difficult=request.difficult,
        scoring=request.scoring, resamples=resamples, seed=seed,
        ann_sha256=file_hash(request.ann), a=str(pred_a), b=str(pred_b), a_sha256=file_hash(pred_a),
        b_sha256=file_hash(pred_b),
    )  # fmt: skip
    return stamp, outcome


def _metric_of(request: EvaluationRequest, pred: Path) -> tuple[bootstrap.Metric, int]:
    if request.protocol == "refcoco":
        scores = referring_scores(request, pred)
        return bootstrap.referring_metric(scores.overlap, scores.images, strict=request.strict)
    if request.protocol == "retrieval":
        from smartclip_det.metrics.retrieval import retrieval_metric

        return retrieval_metric(_checked_vectors(request, pred), request.scoring)
    truth, results, _ = _truth_and_detections(replace(request, pred=pred))
    if request.protocol == "voc":
        return bootstrap.voc_metric(truth, results, request.difficult)
    if request.protocol == "lvis-fixed" or request.setting != "joint":
        raise UserError("--compare knows coco, ov-coco (joint), lvis, ov-lvis, voc, refcoco and retrieval.")
    if request.protocol in LVIS_PROTOCOLS:
        matches = bootstrap.lvis_matches(truth, results, iou_type=request.iou_type, max_dets=request.max_dets or 300)
        frequency = {c["name"]: c["frequency"] for c in truth.data["categories"]}
        by_frequency = {f"AP{f}": ([n for n in frequency if frequency[n] == f], None) for f in "rcf"}
        return bootstrap.detection_metric(matches, {"AP": (list(frequency), None), **by_frequency})
    groups: bootstrap.Groups
    if request.protocol == "ov-coco":
        base, novel, _ = ov_coco_split(request.split_file)
        names = [*base, *novel]
        groups = {"base_ap50": (base, 0), "novel_ap50": (novel, 0), "all_ap50": (names, 0)}
    else:
        names = list(truth.categories.values())
        groups = {"mAP": (names, None), "mAP_50": (names, 0)}
    matches = bootstrap.coco_matches(
        truth, results, names, iou_type=request.iou_type, max_dets=_limits(request.max_dets)[-1]
    )
    return bootstrap.detection_metric(matches, groups)
