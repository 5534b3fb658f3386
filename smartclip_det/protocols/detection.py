"""Protocols of detection files: COCO, OV-COCO, LVIS, VOC, and D-cube and FG-OVD, whose classes are sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from smartclip_det.core.errors import UserError
from smartclip_det.core.rules import COCO_LIMITS, NO_LIMIT
from smartclip_det.formats.annotations import GroundTruth, annotated_only, load_ground_truth, with_images
from smartclip_det.formats.class_splits import ov_coco_split
from smartclip_det.formats.columns import DetectionColumns
from smartclip_det.formats.expressions.fgovd import check_fgovd, load_fgovd, read_caption_scores
from smartclip_det.formats.json_lines import first_json_line
from smartclip_det.formats.lvis import check_lvis
from smartclip_det.formats.predictions import check_predictions, read_lines, read_predictions
from smartclip_det.formats.voc import load_voc_folder, number_voc_images
from smartclip_det.metrics import bootstrap
from smartclip_det.metrics.coco import coco_metrics, evaluate_tables, open_vocabulary_metrics
from smartclip_det.metrics.described_objects import dcube_metrics, fgovd_map, fgovd_metrics
from smartclip_det.metrics.lvis import base_novel_metrics, evaluate_lvis
from smartclip_det.metrics.voc import evaluate_voc
from smartclip_det.protocols.base import Material, Protocol, Scores
from smartclip_det.protocols.options import (
    CocoOptions,
    DcubeOptions,
    DetectionOptions,
    FgovdOptions,
    LvisFixedOptions,
    LvisOptions,
    OvCocoOptions,
    VocOptions,
)

D = TypeVar("D", bound=DetectionOptions)
Results = Sequence[Mapping[str, Any]]


class Detections(Protocol[D]):
    """A protocol for boxes or masks with a class and a score."""

    def read_truth(self, ann: Path, *, need_annotations: bool = True) -> GroundTruth:
        """Read annotations; with ``need_annotations=False``, a file with images and categories only is accepted."""
        return load_ground_truth(ann, need_annotations=need_annotations)

    def classes(self, truth: GroundTruth, options: D) -> list[str] | None:
        """Classes to score; None for all classes of the file."""
        return None

    def read(self, ann: Path, pred: Path, options: D) -> Material:
        """Read and validate saved files."""
        if iou_type_of(options) == "segm" and pred.suffix == ".safetensors":
            raise UserError("Columnar files contain boxes only; segm needs a COCO result list.")
        truth = self.read_truth(ann)
        found = read_predictions(pred, truth)
        if options.images == "predicted":
            if pred.suffix != ".jsonl":
                raise UserError(
                    "--images predicted needs the .partial.jsonl file of an unfinished run, which lists its images."
                )
            truth = with_images(truth, {row["image_id"] for row in read_lines(pred)})
        return self.material(truth, found, options)

    def material(self, truth: GroundTruth, found: Results, options: D) -> Material:
        """Validate predictions and select the images to score.

        Raises:
            UserError: for predictions that do not match the annotations.
        """
        if options.images == "annotated":
            truth = annotated_only(truth, self.classes(truth, options))
        results, counts = check_predictions(found, truth, iou_type_of(options))
        sizes = {"images": len(truth.data["images"]), "annotations": len(truth.data["annotations"])}
        return Material(truth, results, {**sizes, **counts})


def iou_type_of(options: DetectionOptions) -> str:
    """``bbox`` or ``segm``; protocols without this option use boxes."""
    return str(getattr(options, "iou_type", "bbox"))


def _categories_of(results: Results) -> list[Any]:
    if isinstance(results, DetectionColumns):
        return list(results.categories.tolist())
    return [r["category_id"] for r in results]


def limits_of(max_dets: int) -> list[int]:
    """Detection limits of recall, up to that of precision."""
    return [*(n for n in COCO_LIMITS[:-1] if n < max_dets), max_dets]


class Coco(Detections[CocoOptions]):
    """``coco``: average precision over IoU 0.5:0.95."""

    def score(self, material: Material, options: CocoOptions) -> Scores:
        """The twelve COCO metrics."""
        tables = evaluate_tables(
            material.truth,
            material.found,
            backend=options.backend,
            iou_type=options.iou_type,
            max_dets=limits_of(options.max_dets),
        )
        return Scores(coco_metrics(tables, options.iou_type), per_class=tables.class_ap())

    def facts(self, material: Material, options: CocoOptions) -> dict[str, Any]:
        """Definition of the metrics, for the stamp."""
        return {"ap": "COCO, IoU 0.5:0.95, 101 points", "classes": len(material.truth.categories)}

    def resampled(self, material: Material, options: CocoOptions) -> tuple[bootstrap.Metric, int]:
        """``mAP`` and ``mAP_50``."""
        names = list(material.truth.categories.values())
        return _coco_resampled(material, options, names, {"mAP": (names, None), "mAP_50": (names, 0)})


def _coco_resampled(
    material: Material, options: CocoOptions, names: Sequence[str], groups: bootstrap.Groups
) -> tuple[bootstrap.Metric, int]:
    matches = bootstrap.coco_matches(
        material.truth, material.found, names, iou_type=options.iou_type, max_dets=options.max_dets
    )
    return bootstrap.detection_metric(matches, groups)


class OvCoco(Detections[OvCocoOptions]):
    """``ov-coco``: average precision at IoU 0.5 of base and novel classes."""

    def classes(self, truth: GroundTruth, options: OvCocoOptions) -> list[str]:
        """Base and novel classes."""
        base, novel, _ = ov_coco_split(options.split_file)
        return [*base, *novel]

    def score(self, material: Material, options: OvCocoOptions) -> Scores:
        """Base, novel and joint AP."""
        base, novel, _ = ov_coco_split(options.split_file)
        truth, alone = material.truth, options.setting == "target-only"
        ids = set(truth.category_ids([*base, *novel]))
        categories = _categories_of(material.found)
        outside = sum(c not in ids for c in categories)
        if alone:
            foreign = set(truth.category_ids(base))
            if any(c in foreign for c in categories):
                raise UserError(
                    "The predictions contain base classes, so they are from a joint run. target-only is for detectors "
                    "that were given only the novel names."
                )
        tables = evaluate_tables(
            truth,
            material.found,
            backend=options.backend,
            iou_type=options.iou_type,
            max_dets=limits_of(options.max_dets),
            names=novel if alone else [*base, *novel],
        )
        if alone:
            metrics = {"target_only_novel_ap50": tables.ap(0.5)}
        else:
            metrics = {**open_vocabulary_metrics(tables, base, novel), f"{options.iou_type}_mAP": tables.ap()}
        return Scores(metrics, {"outside_vocabulary": outside}, tables.class_ap(0.5))

    def facts(self, material: Material, options: OvCocoOptions) -> dict[str, Any]:
        """Definition of the metrics, for the stamp."""
        base, novel, split = ov_coco_split(options.split_file)
        alone = options.setting == "target-only"
        return {
            "ap": "AP at IoU 0.5, 101 points, one joint run",
            "split": split,
            "vocabulary": len(novel) + (0 if alone else len(base)),
            "base": len(base),
            "novel": len(novel),
        }

    def resampled(self, material: Material, options: OvCocoOptions) -> tuple[bootstrap.Metric, int]:
        """AP at IoU 0.5 of each group."""
        if options.setting != "joint":
            return super().resampled(material, options)
        base, novel, _ = ov_coco_split(options.split_file)
        both = [*base, *novel]
        groups = {"base_ap50": (base, 0), "novel_ap50": (novel, 0), "all_ap50": (both, 0)}
        return _coco_resampled(material, options, both, groups)

    def compared(self, options: OvCocoOptions) -> Mapping[str, Any]:
        """The split."""
        return {**options.facts(), "split": ov_coco_split(options.split_file)[2]}


class Lvis(Detections[LvisOptions]):
    """``lvis`` and ``ov-lvis``: federated average precision, with a limit per image over all classes."""

    def read_truth(self, ann: Path, *, need_annotations: bool = True) -> GroundTruth:
        """Annotations with the federated fields."""
        truth = load_ground_truth(ann, need_annotations=need_annotations)
        if truth.annotated:
            check_lvis(truth)
        return truth

    def score(self, material: Material, options: LvisOptions) -> Scores:
        """AP by frequency; for ``ov-lvis`` also of base and novel classes."""
        metrics, per_class = evaluate_lvis(
            material.truth,
            material.found,
            backend=options.backend,
            iou_type=options.iou_type,
            max_dets=options.max_dets,
        )
        if self.name == "ov-lvis":
            metrics.update(base_novel_metrics(metrics, per_class, material.truth, options.iou_type))
        return Scores(metrics, per_class=per_class)

    def facts(self, material: Material, options: LvisOptions) -> dict[str, Any]:
        """Definition of the metrics, for the stamp."""
        return {"ap": "LVIS, IoU 0.5:0.95, federated", "classes": len(material.truth.categories)}

    def resampled(self, material: Material, options: LvisOptions) -> tuple[bootstrap.Metric, int]:
        """AP, overall and by frequency."""
        matches = bootstrap.lvis_matches(
            material.truth, material.found, iou_type=options.iou_type, max_dets=options.max_dets
        )
        frequency = {c["name"]: c["frequency"] for c in material.truth.data["categories"]}
        by_frequency = {f"AP{f}": ([n for n in frequency if frequency[n] == f], None) for f in "rcf"}
        return bootstrap.detection_metric(matches, {"AP": (list(frequency), None), **by_frequency})


class LvisFixed(Detections[LvisFixedOptions]):
    """``lvis-fixed``: the top 10,000 of each class over the whole set (arXiv 2102.01066)."""

    read_truth = Lvis.read_truth

    def score(self, material: Material, options: LvisFixedOptions) -> Scores:
        """AP by frequency."""
        metrics, per_class = evaluate_lvis(
            material.truth, material.found, backend=options.backend, max_dets=NO_LIMIT, fixed=True
        )
        return Scores(metrics, per_class=per_class)

    def facts(self, material: Material, options: LvisFixedOptions) -> dict[str, Any]:
        """Definition of the metrics, for the stamp."""
        return {
            "ap": "LVIS, IoU 0.5:0.95, federated, fixed: best 10,000 of each class",
            "iou_type": "bbox",
            "max_dets": NO_LIMIT,
            "classes": len(material.truth.categories),
        }


class Voc(Detections[VocOptions]):
    """``voc``: average precision at IoU 0.5, all-point and 11-point."""

    def read_truth(self, ann: Path, *, need_annotations: bool = True) -> GroundTruth:
        """Read a COCO file or a folder of VOC XML files."""
        return load_voc_folder(ann) if ann.is_dir() else load_ground_truth(ann, need_annotations=need_annotations)

    def material(self, truth: GroundTruth, found: Results, options: VocOptions) -> Material:
        """Validate results; those of a folder may identify images by file stem."""
        if Path(truth.path).is_dir():
            found = number_voc_images(found, truth)
        out = super().material(truth, found, options)
        out.counts["difficult"] = sum(bool(a.get("difficult")) for a in out.truth.data["annotations"])
        return out

    def score(self, material: Material, options: VocOptions) -> Scores:
        """Both means."""
        metrics, per_class = evaluate_voc(
            material.truth, material.found, backend=options.backend, difficult=options.difficult
        )
        return Scores(metrics, per_class=per_class)

    def facts(self, material: Material, options: VocOptions) -> dict[str, Any]:
        """Definition of the metrics, for the stamp."""
        return {"ap": "VOC, IoU 0.5, all-point and 11-point, inclusive pixels"}

    def resampled(self, material: Material, options: VocOptions) -> tuple[bootstrap.Metric, int]:
        """Both means."""
        return bootstrap.voc_metric(material.truth, material.found, options.difficult)


class Dcube(Detections[DcubeOptions]):
    """``dcube``: COCO mAP with sentences as classes."""

    def score(self, material: Material, options: DcubeOptions) -> Scores:
        """MAP over all sentences, and by presence and length."""
        metrics, per_class, counts = dcube_metrics(
            material.truth, material.found, options.scenario, backend=options.backend
        )
        return Scores(metrics, counts, per_class)

    def facts(self, material: Material, options: DcubeOptions) -> dict[str, Any]:
        """Definition of the metrics, for the stamp."""
        return {"ap": "COCO, IoU 0.5:0.95, a sentence is a class", "sentences": len(material.truth.categories)}


class Fgovd(Detections[FgovdOptions]):
    """``fgovd``: mAP of caption detections, or the rank of each object's caption on its own box.

    JSON lines are caption scores and give ranks; all other files are detections.
    """

    def read_truth(self, ann: Path, *, need_annotations: bool = True) -> GroundTruth:
        """Read annotations with hard negatives."""
        truth = load_ground_truth(ann, need_annotations=need_annotations)
        check_fgovd(truth.data, ann)
        return truth

    def read(self, ann: Path, pred: Path, options: FgovdOptions) -> Material:
        """Read caption scores by annotation, or detections."""
        first = first_json_line(pred) if pred.suffix == ".jsonl" else None
        if pred.suffix == ".jsonl" and not (isinstance(first, Mapping) and "image_id" in first):
            return Material(load_fgovd(ann), read_caption_scores(pred))
        return super().read(ann, pred, options)

    def score(self, material: Material, options: FgovdOptions) -> Scores:
        """mAP, or ranks."""
        if isinstance(material.found, dict):
            return Scores(*fgovd_metrics(material.truth, material.found))
        metrics, per_class, counts = fgovd_map(material.truth, material.found, backend=options.backend)
        return Scores(metrics, counts, per_class)

    def facts(self, material: Material, options: FgovdOptions) -> dict[str, Any]:
        """Definition of the metrics, for the stamp."""
        if isinstance(material.found, dict):
            return {"unit": "object on its own box, rank among its negatives", "ties": "against"}
        return {"ap": "COCO, IoU 0.5:0.95, a caption is a class", "nms": "0.5 across the captions of an object"}
