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
from mmdet.registry import METRICS
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric
from mmengine.logging import MessageHub

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.evaluation.detection_columns import DetectionColumns
from smartclip_det.evaluation.detection_files import (
    IMAGES,
    check_predictions,
    load_ground_truth,
    write_columnar,
)
from smartclip_det.evaluation.protocols import SETTINGS, chosen_images, score_detections
from smartclip_det.evaluation.stamp import file_hash, protocol_stamp, write_results

PROTOCOL_NAMES = ("coco", "ov-coco", "lvis", "ov-lvis", "lvis-fixed")
#: Image id, ``[N, 4]`` xyxy boxes, ``[N]`` scores, ``[N]`` positions in the vocabulary.
Found = tuple[Any, np.ndarray, np.ndarray, np.ndarray]


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
        setting: str = "joint",
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
            protocol: ``coco | ov-coco | lvis | ov-lvis | lvis-fixed``.
            split_file: base and novel names for ``ov-coco``, in ``data_root``; None for the published 48/17.
            backend: ``fast`` or ``reference``.
            max_dets: detections per image, 0 for the protocol's own.
            images: ``all`` images of the file, or ``annotated``: those with a box of the protocol's classes.
            setting: of ``ov-coco``, see ``protocols.SETTINGS``.
            out_file: predictions to write, ``.json`` (COCO result list) or ``.safetensors`` (columns).
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
        self.setting = check_choice("setting", setting, SETTINGS)
        if out_file and Path(out_file).suffix not in (".json", ".safetensors"):
            raise UserError(f"Predictions are written as .json or .safetensors; given {out_file}.")
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
            self.results.append((sample["img_id"], boxes, scores, np.array(places, dtype=np.int32)))
            lines.append({"image_id": sample["img_id"], "boxes": boxes.tolist(), "scores": scores.tolist(),
                          "names": [classes[i] for i in places]})  # fmt: skip
        if self.partial_file:
            self.partial_file.parent.mkdir(parents=True, exist_ok=True)
            # The first batch of a run starts the file anew.
            mode = "w" if len(self.results) == len(data_samples) else "a"
            with self.partial_file.open(mode, encoding="utf-8") as handle:
                handle.writelines(json.dumps(line) + "\n" for line in lines)

    def compute_metrics(self, results: list[Found]) -> dict[str, float]:
        """Write and score the gathered detections."""
        truth = load_ground_truth(self.ann_file)
        vocabulary = list((self.dataset_meta or {}).get("classes", ())) or list(truth.categories.values())
        limit = self.max_dets or {"lvis": 300, "ov-lvis": 300, "lvis-fixed": -1}.get(self.protocol, 100)
        texts = MessageHub.get_current_instance().get_info("vocabulary", None)
        stamp = protocol_stamp(
            self.protocol, classes=len(vocabulary), texts=texts, backend=self.backend, iou_type="bbox", max_dets=limit,
            setting=self.setting, images=self.images, split=self.split_file or "published",
            ann_sha256=file_hash(self.ann_file), **self.stamp,
        )  # fmt: skip
        found = _columns(results, vocabulary, truth.categories)
        if self.out_file:
            self._write(found, results, vocabulary, stamp)
        truth = chosen_images(truth, self.protocol, self.images, self._split())
        checked, counts = check_predictions(found, truth)
        scores = score_detections(
            self.protocol, truth, checked, backend=self.backend, max_dets=self.max_dets, split_file=self._split(),
            setting=self.setting,
        )  # fmt: skip
        if self.metrics_file:
            write_results(self.metrics_file, stamp, scores.metrics, counts=counts, per_class=scores.per_class)
        return scores.metrics

    def evaluate(self, size: int) -> dict[str, float]:
        """Gather, score, and remove what was written on the way."""
        metrics: dict[str, float] = super().evaluate(size)
        if self.partial_file:
            self.partial_file.unlink(missing_ok=True)
        return metrics

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
                for n, row in enumerate(found):
                    handle.write((", " if n else "") + json.dumps(row))
                handle.write("]")
        else:
            images = [i for i, _, scores, _ in results for _ in range(len(scores))]
            write_columnar(part, images, *_joined(results), vocabulary, stamp)
        os.replace(part, path)


def _joined(results: list[Found]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``[N, 4]`` xyxy boxes, ``[N]`` scores and ``[N]`` vocabulary positions of all images."""
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(b.reshape(-1, 4) for _, b, _, _ in results)])
    scores = np.concatenate([np.zeros(0, np.float32), *(s for _, _, s, _ in results)])
    return boxes, scores, np.concatenate([np.zeros(0, np.int32), *(p for _, _, _, p in results)])


def _columns(results: list[Found], vocabulary: list[str], categories: Mapping[int, str]) -> DetectionColumns:
    """Detections under the ids of an annotation file; names that it lacks get an id that it lacks."""
    by_name = {n: i for i, n in categories.items()}
    unknown = max([0, *by_name.values()]) + 1
    ids = np.array([by_name.get(n, unknown) for n in vocabulary], dtype=np.int64)
    boxes, scores, places = _joined(results)
    xywh = boxes.astype(np.float64)
    xywh[:, 2:] -= xywh[:, :2]
    images = [i for i, _, scores_of, _ in results for _ in range(len(scores_of))]
    return DetectionColumns.from_arrays(images, ids[places], xywh, scores.astype(np.float64))
