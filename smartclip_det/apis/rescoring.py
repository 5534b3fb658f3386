"""Rescore given boxes of the images of an annotation file with an encoder's region vectors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor
from tqdm import tqdm

from smartclip_det.apis.region_encoding import RegionEncoding
from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.text_bank import TextBank
from smartclip_det.formats.annotations import GroundTruth, load_ground_truth
from smartclip_det.formats.demo_answers import is_demo_answer, read_demo_answers
from smartclip_det.formats.pictures import picture_path
from smartclip_det.formats.predictions import check_predictions, read_predictions
from smartclip_det.models.regions import RegionEncoder
from smartclip_det.models.rescoring import (
    RescoreOptions,
    best_boxes,
    blend_own_scores,
    class_scores,
    detect_in_boxes,
)
from smartclip_det.models.vocabulary import build_bank, resolve_names
from smartclip_det.protocols.detection_metric import OpenVocabMetric
from smartclip_det.protocols.stamp import file_hash
from smartclip_det.utils.images import open_rgb

GROUND_TRUTH = "ground-truth"
Boxes = tuple[Tensor, Tensor, list[str]]


@dataclass(frozen=True)
class InputBoxes:
    """Boxes to classify.

    Attributes:
        source: ``ground-truth``, saved detections, or the output of the demo (a JSON or the folder).
        keep_classes: keep the class of each detection.
        nms_iou: IoU threshold of class-agnostic NMS; not used with ``keep_classes``.
        limit: boxes per image, by score; not used with ``keep_classes``.
    """

    source: str = GROUND_TRUTH
    keep_classes: bool = False
    nms_iou: float = 0.7
    limit: int = 300

    def __post_init__(self) -> None:
        if self.keep_classes and self.source == GROUND_TRUTH:
            raise UserError("--keep-classes with --boxes ground-truth would give every box its true class.")


@dataclass(frozen=True)
class RescoreFileOptions:
    """Options of rescoring the boxes of an annotation file's images.

    Attributes:
        ann: COCO or LVIS annotations.
        images: image folder.
        encoder: encoder and region vectors; one encoder.
        boxes: boxes to classify.
        vocabulary: names, a file of them, or a known vocabulary; None: those of the annotations.
        templates: a template set, or custom templates.
        protocol: evaluation protocol.
        split_file: JSON with custom base and novel names for ``ov-coco``.
        policy: mask mode, activation, background, temperature, presence.
        scores: how class scores become detections.
        out: predictions, ``.json`` or ``.safetensors``, with ``.metrics.json`` next to them.
    """

    ann: str | Path
    images: str | Path
    encoder: RegionEncoding
    boxes: InputBoxes = field(default_factory=InputBoxes)
    vocabulary: str | Sequence[str] | None = None
    templates: str | Sequence[str] = "photo"
    protocol: str = "coco"
    split_file: str | None = None
    policy: ScoringPolicy = field(default_factory=ScoringPolicy)
    scores: RescoreOptions = field(default_factory=RescoreOptions)
    out: Path = Path("work_dirs/rescored.json")

    def __post_init__(self) -> None:
        if (count := len(self.encoder.towers)) != 1:
            raise UserError(f"Rescoring uses one encoder; got {count}. Rescore once per encoder.")


def rescore_file(options: RescoreFileOptions) -> dict[str, float]:
    """Encode each image once, score its boxes, and write predictions and metrics.

    Returns:
        The metrics of the protocol.

    Raises:
        UserError: for missing or invalid files, and conflicting options.
    """
    truth = load_ground_truth(options.ann, need_annotations=options.boxes.source == GROUND_TRUTH)
    names = resolve_names(options.vocabulary) if options.vocabulary else list(truth.categories.values())
    found = saved_boxes(options.boxes.source, truth)
    (encoder,) = options.encoder.load()
    bank = build_bank(encoder.towers, names, templates=options.templates)
    metric = _metric(options, encoder, bank)
    none: Boxes = (torch.zeros(0, 4), torch.zeros(0), [])
    for info in tqdm(truth.data["images"], desc="rescoring", unit="image"):
        path = picture_path(Path(options.images), info, str(options.ann))
        boxes, scores, labels = _rescored(options, encoder, bank, path, found.get(info["id"], none))
        instances = InstanceData(bboxes=boxes, scores=scores.float(), labels=labels)
        metric.process(None, [{"img_id": info["id"], "pred_instances": instances}])
    metrics = metric.evaluate(len(truth.data["images"]))
    return {k: v for k, v in metrics.items() if isinstance(v, float)}


def _rescored(
    options: RescoreFileOptions, encoder: RegionEncoder, bank: TextBank, path: Path, found: Boxes
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes ``[N, 4]``, scores ``[N]`` and classes ``[N]`` of one image."""
    boxes, own, own_names = found
    place = {n: i for i, n in enumerate(bank.names)}
    image = open_rgb(path)
    if options.boxes.keep_classes:
        rows = torch.tensor([i for i, n in enumerate(own_names) if n in place], dtype=torch.long)
    else:
        rows = best_boxes(boxes, own, options.boxes.nms_iou, options.boxes.limit)
    boxes, own = boxes[rows], own[rows]
    picture = encoder.picture(image, options.policy.presence_source) if options.policy.presence else None
    scores = class_scores(
        [encoder.vectors(image, boxes.tolist(), v).cpu() for v in options.encoder.views],
        bank.to("cpu"),
        options.policy,
        picture,
    )
    if options.boxes.keep_classes:
        labels = torch.tensor([place[own_names[i]] for i in rows.tolist()], dtype=torch.long)
        return boxes, blend_own_scores(own, labels, scores, options.scores), labels
    rows, labels, values = detect_in_boxes(boxes, own, scores, options.scores)
    return boxes[rows], values, labels


def _metric(options: RescoreFileOptions, encoder: RegionEncoder, bank: TextBank) -> OpenVocabMetric:
    """Build the metric that writes and scores predictions, with its stamp."""
    o = options
    metric = OpenVocabMetric(
        str(o.ann),
        protocol=o.protocol,
        split_file=o.split_file,
        out_file=str(o.out),
        metrics_file=str(o.out.with_suffix(".metrics.json")),
        stamp={
            "family": "rescoring",
            "boxes": o.boxes.source,
            "keep_classes": o.boxes.keep_classes,
            "views": list(o.encoder.views),
            "dense_mode": o.encoder.dense_mode,
            "dense_size": encoder.dense_size,
            "region_scores": vars(o.scores),
            "proposal_nms": o.boxes.nms_iou,
            "max_proposals": o.boxes.limit,
            "policy": o.policy.to_dict(),
            "bank": bank.provenance,
            "boxes_sha256": None if o.boxes.source == GROUND_TRUTH else file_hash(o.boxes.source),
        },
    )
    metric.dataset_meta = {"classes": tuple(bank.names)}
    return metric


def saved_boxes(boxes: str, truth: GroundTruth) -> dict[Any, Boxes]:
    """Read boxes ``[R, 4]`` xyxy, scores ``[R]`` and class names of each image ("" for unknown classes)."""
    rows: Any
    if boxes == GROUND_TRUTH:
        rows = [{**a, "score": 1.0} for a in truth.data["annotations"] if not a.get("iscrowd")]
    else:
        found = read_demo_answers(boxes, truth) if is_demo_answer(boxes) else read_predictions(boxes, truth)
        rows, _ = check_predictions(found, truth)
    by_image: dict[Any, list[Any]] = defaultdict(list)
    for r in rows:
        by_image[r["image_id"]].append(r)
    out = {}
    for image_id, mine in by_image.items():
        corners = torch.tensor([r["bbox"] for r in mine], dtype=torch.float32)
        corners[:, 2:] += corners[:, :2]
        names = [truth.categories.get(r["category_id"], "") for r in mine]
        out[image_id] = corners, torch.tensor([r["score"] for r in mine], dtype=torch.float32), names
    return out
