"""MMEngine metrics: collect detections during a run, write them, and score them by the functions of this package.

What is written with ``out_file`` and what is scored are the same numbers, so ``tools/evaluate.py`` on the saved
file gives the same digits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.logging import MessageHub

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.evaluation.detection_files import (
    IMAGES,
    check_predictions,
    load_ground_truth,
    write_columnar,
    xyxy_to_xywh,
)
from smartclip_det.evaluation.protocols import chosen_images, score_detections
from smartclip_det.evaluation.stamp import file_hash, protocol_stamp, write_results


@METRICS.register_module()
class OpenVocabMetric(BaseMetric):
    """COCO, OV-COCO, LVIS or OV-LVIS average precision of boxes, matched to the annotations by class name."""

    def __init__(
        self,
        ann_file: str,
        data_root: str = "",
        protocol: str = "coco",
        split_file: str | None = None,
        backend: str = "fast",
        max_dets: int = 0,
        images: str = "all",
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
            protocol: ``coco | ov-coco | lvis | ov-lvis``.
            split_file: base and novel names for ``ov-coco``, in ``data_root``; None for the published 48/17.
            backend: ``fast`` or ``reference``.
            max_dets: detections per image, 0 for the protocol's own.
            images: ``all`` images of the file, or ``annotated``: those with a box of the protocol's classes.
            out_file: predictions to write, ``.json`` (COCO result list) or ``.safetensors`` (columns).
            metrics_file: stamped metrics JSON to write.
            stamp: further facts for the protocol stamp (checkpoint hash, policy, ...).
            collect_device: where ranks gather.
            prefix: prefix of the metric names.
        """
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.protocol = check_choice("protocol", protocol, ("coco", "ov-coco", "lvis", "ov-lvis"))
        self.ann_file = os.path.join(data_root, ann_file)
        self.split_file = os.path.join(data_root, split_file) if split_file else None
        self.backend, self.max_dets = backend, max_dets
        self.stamp = dict(stamp or {})
        self.images = check_choice("images", images, IMAGES)
        if out_file and Path(out_file).suffix not in (".json", ".safetensors"):
            raise UserError(f"Predictions are written as .json or .safetensors; given {out_file}.")
        self.out_file, self.metrics_file = out_file, metrics_file

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep the detections of a batch, as plain numbers."""
        for sample in data_samples:
            found = sample["pred_instances"]
            names = found.get("label_names")
            if names is None:
                classes = (self.dataset_meta or {})["classes"]
                names = [classes[i] for i in found["labels"].tolist()]
            self.results.append((sample["img_id"], found["bboxes"].tolist(), found["scores"].tolist(), list(names)))

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Write and score the gathered detections."""
        truth = load_ground_truth(self.ann_file)
        vocabulary = list((self.dataset_meta or {}).get("classes", ())) or list(truth.categories.values())
        by_name = {n: i for i, n in truth.categories.items()}
        unknown = max([0, *by_name.values()]) + 1
        listed = [
            {"image_id": image, "category_id": by_name.get(name, unknown), "bbox": xyxy_to_xywh(box), "score": score}
            for image, boxes, scores, names in results
            for box, score, name in zip(boxes, scores, names, strict=True)
        ]
        texts = MessageHub.get_current_instance().get_info("vocabulary", None)
        stamp = protocol_stamp(
            self.protocol, classes=len(vocabulary), texts=texts,
            backend=self.backend, iou_type="bbox", max_dets=self.max_dets or (300 if "lvis" in self.protocol else 100),
            images=self.images, split=self.split_file or "published", ann_sha256=file_hash(self.ann_file), **self.stamp,
        )  # fmt: skip
        if self.out_file:
            self._write(listed, results, vocabulary, stamp)
        truth = chosen_images(truth, self.protocol, self.images, self._split())
        checked, counts = check_predictions(listed, truth)
        metrics = score_detections(
            self.protocol, truth, checked, backend=self.backend, max_dets=self.max_dets, split_file=self._split()
        ).metrics
        if self.metrics_file:
            write_results(self.metrics_file, stamp, metrics, counts=counts)
        return metrics

    def _split(self) -> Path | None:
        return Path(self.split_file) if self.split_file else None

    def _write(
        self, listed: list[dict[str, Any]], results: list[Any], vocabulary: list[str], stamp: Mapping[str, Any]
    ) -> None:
        assert self.out_file is not None
        path = Path(self.out_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"part-{path.name}")
        if path.suffix == ".json":
            part.write_text(json.dumps(listed), encoding="utf-8")
        else:
            index = {n: i for i, n in enumerate(vocabulary)}
            rows = [
                {"image_id": image, "xyxy": box, "score": score, "name_index": index[name]}
                for image, boxes, scores, names in results
                for box, score, name in zip(boxes, scores, names, strict=True)
            ]
            write_columnar(part, rows, vocabulary, stamp)
        os.replace(part, path)
