"""MMEngine metrics: collect detections during a run, write them, and score them by the functions of this package.

What is written with ``out_file`` and what is scored are the same numbers, so ``tools/evaluate.py`` on the saved
file gives the same digits. Predictions go to a ``.partial.jsonl`` file as they come, one for each process, which is
removed once the whole file is there: ``tools/evaluate.py --images predicted`` scores what a run that died has left.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric
from mmengine.logging import MessageHub
from mmengine.registry import METRICS

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.formats.annotations import IMAGES, GroundTruth, load_ground_truth
from smartclip_det.formats.columns import DetectionColumns
from smartclip_det.formats.predictions import check_predictions, write_columnar
from smartclip_det.formats.segmentations import encode_mask
from smartclip_det.protocols.detection import chosen_images, score_detections
from smartclip_det.protocols.request import settings_of
from smartclip_det.protocols.stamp import file_hash, protocol_stamp, write_results
from smartclip_det.utils.notes import note

PROTOCOL_NAMES = ("coco", "ov-coco", "lvis", "ov-lvis", "lvis-fixed", "dcube", "fgovd")
IOU_TYPES = ("bbox", "segm")
#: Image id, ``[N, 4]`` xyxy boxes, ``[N]`` scores, ``[N]`` positions in the vocabulary, N masks (RLE) or None.
Found = tuple[Any, np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]] | None]


@METRICS.register_module()
class OpenVocabMetric(BaseMetric):
    """Average precision of boxes and masks by COCO, OV-COCO, LVIS or OV-LVIS rules; classes are matched by name."""

    def __init__(
        self,
        ann_file: str,
        data_root: str = "",
        protocol: str = "coco",
        split_file: str | None = None,
        backend: str = "fast",
        max_dets: int = 0,
        images: str = "all",
        setting: str | None = None,
        iou_types: Sequence[str] = ("bbox",),
        out_file: str | None = None,
        metrics_file: str | None = None,
        stamp: Mapping[str, Any] | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        """Build.

        Args:
            ann_file: COCO or LVIS annotations.
            data_root: folder that a relative ``ann_file`` is in.
            protocol: one of :data:`PROTOCOL_NAMES`; the classes of the last two are sentences.
            split_file: base and novel names for ``ov-coco``, in ``data_root``; None for the published 48/17.
            backend: ``fast`` or ``reference``.
            max_dets: detections per image, 0 for the protocol's own.
            images: ``all`` images of the file, or ``annotated``: those with a box of the protocol's classes.
            setting: of ``ov-coco`` and ``dcube``, see ``request.settings_of``; default: its first.
            iou_types: ``bbox``, or ``bbox`` and ``segm`` for detectors with masks.
            out_file: predictions to write, ``.json`` (COCO result list) or ``.safetensors`` (columns, boxes only).
            metrics_file: stamped metrics JSON to write.
            stamp: further facts for the protocol stamp (checkpoint hash, policy, ...).
            collect_device: where ranks gather.
            prefix: prefix of the metric names.
        """
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.protocol = check_choice("protocol", protocol, PROTOCOL_NAMES)
        self.ann_file = os.path.join(data_root, ann_file)
        self.split_file = os.path.join(data_root, split_file) if split_file else None
        self.backend, self.max_dets = backend, max_dets
        self.stamp = dict(stamp or {})
        self.images = check_choice("images", images, IMAGES[:2])
        allowed = settings_of(self.protocol)
        self.setting = check_choice("setting", setting or allowed[0], allowed)
        if out_file and Path(out_file).suffix not in (".json", ".safetensors"):
            raise UserError(f"Predictions are written as .json or .safetensors; given {out_file}.")
        self.iou_types = [check_choice("iou_types", t, IOU_TYPES) for t in iou_types]
        if "segm" in self.iou_types and out_file and Path(out_file).suffix != ".json":
            raise UserError(f"Masks are written as .json (a COCO result list); given {out_file}.")
        self.out_file, self.metrics_file = out_file, metrics_file

    @property
    def partial_file(self) -> Path | None:
        """Where this process writes detections as they come."""
        return Path(f"{self.out_file}.rank{get_rank()}.partial.jsonl") if self.out_file else None

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep the detections of a batch as arrays, and write them down."""
        classes = list((self.dataset_meta or {}).get("classes", ()))
        index = {n: i for i, n in enumerate(classes)}
        lines = []
        for sample in data_samples:
            found = sample["pred_instances"]
            names = found.get("label_names")
            places = found["labels"].tolist() if names is None else [index[n] for n in names]
            boxes, scores = found["bboxes"].cpu().numpy(), found["scores"].cpu().numpy()
            masks = _run_lengths(found) if "segm" in self.iou_types else None
            self.results.append((sample["img_id"], boxes, scores, np.array(places, dtype=np.int32), masks))
            line = {"image_id": sample["img_id"], "boxes": boxes.tolist(), "scores": scores.tolist(),
                    "names": [classes[i] for i in places]}  # fmt: skip
            lines.append(line if masks is None else {**line, "masks": masks})
        if self.partial_file:
            self.partial_file.parent.mkdir(parents=True, exist_ok=True)
            # The first batch of a run starts the file anew.
            mode = "w" if len(self.results) == len(data_samples) else "a"
            with self.partial_file.open(mode, encoding="utf-8") as handle:
                handle.writelines(json.dumps(line) + "\n" for line in lines)

    def compute_metrics(self, results: list[Found]) -> dict[str, float]:
        """Write and score the gathered detections."""
        truth = load_ground_truth(self.ann_file, need_annotations=False)
        vocabulary = list((self.dataset_meta or {}).get("classes", ())) or list(truth.categories.values())
        limit = self.max_dets or {"lvis": 300, "ov-lvis": 300, "lvis-fixed": -1}.get(self.protocol, 100)
        texts = MessageHub.get_current_instance().get_info("vocabulary", None)
        stamp = protocol_stamp(
            self.protocol, classes=len(vocabulary), texts=texts, backend=self.backend,
            iou_type=" and ".join(self.iou_types), max_dets=limit, setting=self.setting, images=self.images,
            split=self.split_file or "published", ann_sha256=file_hash(self.ann_file), **self.stamp,
        )  # fmt: skip
        found = _columns(results, vocabulary, truth)
        if self.out_file:
            self._write(found, results, vocabulary, stamp)
        if not truth.annotated:
            note(f"{self.ann_file} has no annotations: predictions{self._told_where()}, no metrics.")
            return {}
        truth = chosen_images(truth, self.protocol, self.images, self._split())
        metrics: dict[str, float] = {}
        per_class: dict[str, Any] = {}
        for iou_type in self.iou_types:
            checked, counts = check_predictions(
                _masked(found, results) if iou_type == "segm" else found, truth, iou_type
            )
            scores = score_detections(
                self.protocol, truth, checked, backend=self.backend, max_dets=self.max_dets, iou_type=iou_type,
                split_file=self._split(), setting=self.setting,
            )  # fmt: skip
            per_class[iou_type] = scores.per_class
            # OV-COCO's names say nothing of boxes or masks.
            metrics.update({k if k not in metrics else f"{iou_type}_{k}": v for k, v in scores.metrics.items()})
        if self.metrics_file:
            classes = per_class["bbox"] if self.iou_types == ["bbox"] else per_class
            write_results(self.metrics_file, stamp, metrics, counts=counts, per_class=classes)
        return metrics

    def evaluate(self, size: int) -> dict[str, float]:
        """Gather, score, and remove what was written on the way."""
        metrics: dict[str, float] = super().evaluate(size)
        if self.partial_file:
            self.partial_file.unlink(missing_ok=True)
        return metrics

    def _told_where(self) -> str:
        return f" are in {self.out_file}" if self.out_file else " are written with --out alone"

    def _split(self) -> Path | None:
        return Path(self.split_file) if self.split_file else None

    def _write(
        self, found: DetectionColumns, results: list[Found], vocabulary: list[str], stamp: Mapping[str, Any]
    ) -> None:
        assert self.out_file is not None
        path = Path(self.out_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"part-{path.name}")
        if path.suffix == ".json":
            with part.open("w", encoding="utf-8") as handle:
                handle.write("[")
                for n, row in enumerate(_masked(found, results) if "segm" in self.iou_types else found):
                    handle.write((", " if n else "") + json.dumps(row))
                handle.write("]")
        else:
            write_columnar(part, _image_ids(results), *_joined(results), vocabulary, stamp)
        os.replace(part, path)


def _joined(results: list[Found]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``[N, 4]`` xyxy boxes, ``[N]`` scores and ``[N]`` vocabulary positions of all images."""
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(f[1].reshape(-1, 4) for f in results)])
    scores = np.concatenate([np.zeros(0, np.float32), *(f[2] for f in results)])
    return boxes, scores, np.concatenate([np.zeros(0, np.int32), *(f[3] for f in results)])


def _image_ids(results: list[Found]) -> list[Any]:
    return [f[0] for f in results for _ in range(len(f[2]))]


def _run_lengths(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """COCO run lengths of ``masks [N, H, W]``."""
    if "masks" not in found:
        raise UserError("iou_types asks for segm, but the detector gives no masks: it has no mask head.")
    masks = found["masks"]
    masks = masks.cpu().numpy() if hasattr(masks, "cpu") else np.asarray(masks)
    return [encode_mask(m) for m in masks]


def _masked(found: DetectionColumns, results: list[Found]) -> list[dict[str, Any]]:
    masks = (m for f in results for m in f[4] or [])
    return [{**row, "segmentation": m} for row, m in zip(found, masks, strict=True)]


def _columns(results: list[Found], vocabulary: list[str], truth: GroundTruth) -> DetectionColumns:
    """Detections under the ids of an annotation file; names that it lacks get an id that it lacks."""
    ids = truth.ids_of(vocabulary)
    boxes, scores, places = _joined(results)
    xywh = boxes.astype(np.float64)
    xywh[:, 2:] -= xywh[:, :2]
    return DetectionColumns.from_arrays(_image_ids(results), ids[places], xywh, scores.astype(np.float64))
