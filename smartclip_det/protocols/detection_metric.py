"""MMEngine metric of detection runs: collects detections, writes them, and scores them with a registered protocol.

``out_file`` contains exactly the scored numbers, so ``tools/evaluate.py`` on the saved file gives the same metrics and
stamp. During a run each process appends predictions to a ``.partial.jsonl`` file, which is removed when ``out_file`` is
complete; ``tools/evaluate.py --images predicted`` scores the partial file of an interrupted run.
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
from smartclip_det.core.rules import IOU_TYPES
from smartclip_det.formats.annotations import GroundTruth
from smartclip_det.formats.columns import DetectionColumns
from smartclip_det.formats.predictions import write_columnar
from smartclip_det.formats.segmentations import encode_mask
from smartclip_det.protocols.base import Material, Scores
from smartclip_det.protocols.detection import iou_type_of
from smartclip_det.protocols.options import names_of, options_of
from smartclip_det.protocols.registry import OF_DETECTIONS
from smartclip_det.protocols.stamp import write_results
from smartclip_det.utils.boxes import sides_of
from smartclip_det.utils.notes import note

#: Image id, ``[N, 4]`` xyxy boxes, ``[N]`` scores, ``[N]`` indices into the vocabulary, N masks (RLE) or None.
Found = tuple[Any, np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]] | None]


@METRICS.register_module()
class OpenVocabMetric(BaseMetric):
    """Average precision of boxes and masks with any detection protocol; classes are matched by name."""

    def __init__(
        self,
        ann_file: str,
        data_root: str = "",
        protocol: str = "coco",
        iou_types: Sequence[str] = IOU_TYPES[:1],
        out_file: str | None = None,
        metrics_file: str | None = None,
        stamp: Mapping[str, Any] | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
        **options: Any,
    ) -> None:
        """Initialise.

        Args:
            ann_file: COCO or LVIS annotations.
            data_root: folder of a relative ``ann_file`` or ``split_file``.
            protocol: one of ``registry.OF_DETECTIONS``.
            iou_types: ``bbox``, or ``bbox`` and ``segm`` for detectors with masks.
            out_file: predictions to write, ``.json`` (COCO result list) or ``.safetensors`` (columns, boxes only).
            metrics_file: stamped metrics JSON to write.
            stamp: additional entries of the protocol stamp (checkpoint hash, policy, ...).
            collect_device: device on which ranks gather results.
            prefix: prefix of the metric names.
            options: options of the protocol, see ``protocols.options``: ``images``, ``max_dets``, ``scenario``, ...

        Raises:
            UserError: for options that the protocol does not have, and for invalid values.
        """
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.protocol = OF_DETECTIONS[check_choice("protocol", protocol, OF_DETECTIONS)]
        self.ann_file = os.path.join(data_root, ann_file)
        if options.get("split_file"):
            options["split_file"] = os.path.join(data_root, options["split_file"])
        self.iou_types = [check_choice("iou_types", t, IOU_TYPES) for t in iou_types]
        if "iou_type" in names_of(protocol):
            self.options = [options_of(protocol, {**options, "iou_type": t}) for t in self.iou_types]
        elif self.iou_types == ["bbox"]:
            self.options = [options_of(protocol, options)]
        else:
            raise UserError(f"{protocol} is for boxes; given iou_types={self.iou_types}.")
        if self.options[0].images == "predicted":
            raise UserError("images=predicted is for files of interrupted runs; a run scores all or annotated images.")
        self.stamp = dict(stamp or {})
        if out_file and Path(out_file).suffix not in (".json", ".safetensors"):
            raise UserError(f"Predictions are written as .json or .safetensors; given {out_file}.")
        if "segm" in self.iou_types and out_file and Path(out_file).suffix != ".json":
            raise UserError(f"Masks are written as .json (a COCO result list); given {out_file}.")
        self.out_file, self.metrics_file = out_file, metrics_file

    @property
    def partial_file(self) -> Path | None:
        """File to which this process appends detections during the run."""
        return Path(f"{self.out_file}.rank{get_rank()}.partial.jsonl") if self.out_file else None

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Collect the detections of a batch as arrays, and append them to the partial file."""
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
            line = {
                "image_id": sample["img_id"],
                "boxes": boxes.tolist(),
                "scores": scores.tolist(),
                "names": [classes[i] for i in places],
            }
            lines.append(line if masks is None else {**line, "masks": masks})
        if self.partial_file:
            self.partial_file.parent.mkdir(parents=True, exist_ok=True)
            # The first batch of a run overwrites the file.
            mode = "w" if len(self.results) == len(data_samples) else "a"
            with self.partial_file.open(mode, encoding="utf-8") as handle:
                handle.writelines(json.dumps(line) + "\n" for line in lines)

    def compute_metrics(self, results: list[Found]) -> dict[str, float]:
        """Write and score the gathered detections; without annotations (images only) there are no metrics."""
        truth = self.protocol.read_truth(Path(self.ann_file), need_annotations=False)
        vocabulary = list((self.dataset_meta or {}).get("classes", ())) or list(truth.categories.values())
        found = _columns(results, vocabulary, truth)
        rows = _masked(found, results) if "segm" in self.iou_types else found
        if self.out_file:
            # Columnar files contain the stamp, so the stamp cannot contain the hash of the file.
            self._write(rows, results, vocabulary, self._stamp(Material(truth, rows), None))
        if not truth.annotated:
            where = f" are in {self.out_file}" if self.out_file else " are written only with --out"
            note(f"{self.ann_file} has no annotations: predictions{where}, there are no metrics.")
            return {}
        scored: list[tuple[Material, Scores]] = []
        for options in self.options:
            material = self.protocol.material(truth, rows if iou_type_of(options) == "segm" else found, options)
            scored.append((material, self.protocol.score(material, options)))
        metrics: dict[str, float] = {}
        for iou_type, (_, scores) in zip(self.iou_types, scored, strict=True):
            # OV-COCO's metric names do not contain the IoU type.
            metrics.update({k if k not in metrics else f"{iou_type}_{k}": v for k, v in scores.metrics.items()})
        if self.metrics_file:
            classes: dict[str, Any] = {t: s.per_class for t, (_, s) in zip(self.iou_types, scored, strict=True)}
            write_results(
                self.metrics_file,
                self._stamp(scored[0][0], self.out_file),
                metrics,
                counts={**scored[-1][0].counts, **scored[-1][1].counts},
                per_class=classes if len(classes) > 1 else scored[0][1].per_class,
            )
        return metrics

    def _stamp(self, material: Material, pred: str | None) -> dict[str, Any]:
        """The stamp of a saved file, with entries that only a run knows."""
        texts = MessageHub.get_current_instance().get_info("vocabulary", None)
        more = self.stamp | ({} if texts is None else {"texts": texts})
        if len(self.iou_types) > 1:
            more["iou_type"] = " and ".join(self.iou_types)
        return self.protocol.stamp(material, self.options[0], self.ann_file, pred, **more)

    def evaluate(self, size: int) -> dict[str, float]:
        """Gather, score, and remove the partial files."""
        metrics: dict[str, float] = super().evaluate(size)
        if self.partial_file:
            self.partial_file.unlink(missing_ok=True)
        return metrics

    def _write(
        self, rows: Sequence[Mapping[str, Any]], results: list[Found], vocabulary: list[str], stamp: Mapping[str, Any]
    ) -> None:
        assert self.out_file is not None
        path = Path(self.out_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"part-{path.name}")
        if path.suffix == ".json":
            with part.open("w", encoding="utf-8") as handle:
                handle.write("[")
                for n, row in enumerate(rows):
                    handle.write((", " if n else "") + json.dumps(row))
                handle.write("]")
        else:
            write_columnar(part, _image_ids(results), *_joined(results), vocabulary, stamp)
        os.replace(part, path)


def _joined(results: list[Found]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``[N, 4]`` xyxy boxes, ``[N]`` scores and ``[N]`` vocabulary indices of all images."""
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(f[1].reshape(-1, 4) for f in results)])
    scores = np.concatenate([np.zeros(0, np.float32), *(f[2] for f in results)])
    return boxes, scores, np.concatenate([np.zeros(0, np.int32), *(f[3] for f in results)])


def _image_ids(results: list[Found]) -> list[Any]:
    return [f[0] for f in results for _ in range(len(f[2]))]


def _run_lengths(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """COCO run lengths of ``masks [N, H, W]``."""
    if "masks" not in found:
        raise UserError("iou_types contains segm, but the detector has no mask head.")
    masks = found["masks"]
    masks = masks.cpu().numpy() if hasattr(masks, "cpu") else np.asarray(masks)
    return [encode_mask(m) for m in masks]


def _masked(found: DetectionColumns, results: list[Found]) -> list[dict[str, Any]]:
    masks = (m for f in results for m in f[4] or [])
    return [{**row, "segmentation": m} for row, m in zip(found, masks, strict=True)]


def _columns(results: list[Found], vocabulary: list[str], truth: GroundTruth) -> DetectionColumns:
    """Detections with the category ids of an annotation file; names that it lacks get unused ids."""
    ids = truth.ids_of(vocabulary)
    boxes, scores, places = _joined(results)
    return DetectionColumns.from_arrays(_image_ids(results), ids[places], sides_of(boxes), scores.astype(np.float64))
