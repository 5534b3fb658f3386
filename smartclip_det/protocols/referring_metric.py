"""MMEngine metric of grounding runs: writes predictions and scores them like ``tools/evaluate.py``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.formats.segmentations import encode_mask
from smartclip_det.protocols.options import names_of, options_of
from smartclip_det.protocols.registry import OF_MASKS, OF_SENTENCES, protocol_of
from smartclip_det.protocols.stamp import write_results
from smartclip_det.utils.files import write_whole


@METRICS.register_module()
class ReferringMetric(BaseMetric):
    """Boxes and masks of sentences, with any protocol over sentences; names are prefixed if there are several.

    Data samples have ``grounded``: for each sentence ``id``, ``boxes`` (xyxy pixels of the image, by descending score),
    ``scores``, and ``mask`` (``[H, W]`` bool) for mask protocols. Results do not depend on the order of batches.
    """

    def __init__(
        self,
        ann_file: str,
        data_root: str = "",
        split: str | None = None,
        instances: str | None = None,
        protocols: Sequence[str] = ("refcoco",),
        out_file: str | None = None,
        metrics_file: str | None = None,
        stamp: Mapping[str, Any] | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
        **options: Any,
    ) -> None:
        """Initialise.

        Args:
            ann_file: expression file of the data set.
            data_root: folder of relative paths.
            split: split of the file; None for all sentences.
            instances: ``instances.json`` of a refs file; default: next to it.
            protocols: from ``registry.OF_SENTENCES``.
            out_file: JSON lines of boxes to write; masks go next to it, to ``NAME.masks.jsonl``.
            metrics_file: stamped metrics JSON to write.
            stamp: additional entries of the stamp.
            collect_device: device on which ranks gather results.
            prefix: prefix of the metric names.
            options: options of the protocols, see ``protocols.options``: ``overlap``, ``score_threshold``, ...; each is
                passed to the protocols that have it.

        Raises:
            UserError: for options that no protocol has, and invalid values.
        """
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.protocols = [check_choice("protocol", p, OF_SENTENCES) for p in protocols]
        self.ann_file = Path(data_root) / ann_file
        common = {"split": split or "", "instances": Path(data_root) / instances if instances else None}
        self.options = {}
        for p in self.protocols:
            others = {n for q in self.protocols for n in names_of(q)} - set(names_of(p))
            mine = {k: v for k, v in options.items() if k not in others}
            self.options[p] = options_of(p, {**common, **mine})
        self.stamp, self.out_file, self.metrics_file = dict(stamp or {}), out_file, metrics_file

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Collect the sentences of each image, with masks as RLE."""
        wanted = any(p in OF_MASKS for p in self.protocols)
        for sample in data_samples:
            rows = []
            for found in sample["grounded"]:
                row = {k: found[k] for k in ("id", "boxes", "scores")}
                if wanted:
                    if "mask" not in found:
                        raise UserError("Mask protocols need a head with mask_branch=True.")
                    row["segmentation"] = encode_mask(found["mask"]) if found["mask"].any() else None
                rows.append(row)
            self.results.append(rows)

    def compute_metrics(self, results: list[list[dict[str, Any]]]) -> dict[str, float]:
        """Write predictions, and score the file."""
        rows = [r for mine in results for r in mine]
        with tempfile.TemporaryDirectory() as folder:
            boxes = Path(self.out_file) if self.out_file else Path(folder) / "found.jsonl"
            masks = boxes.with_suffix(".masks.jsonl")
            lines = (json.dumps({k: r[k] for k in ("id", "boxes", "scores")}) for r in rows)
            write_whole(boxes, "".join(f"{line}\n" for line in lines))
            if any(p in OF_MASKS for p in self.protocols):
                lines = (json.dumps({k: r[k] for k in ("id", "segmentation")}) for r in rows)
                write_whole(masks, "".join(f"{line}\n" for line in lines))
            found = {
                p: protocol_of(p).evaluate(self.ann_file, masks if p in OF_MASKS else boxes, options)
                for p, options in self.options.items()
            }
        several = len(found) > 1
        metrics = {f"{p}_{k}" if several else k: v for p, f in found.items() for k, v in f.metrics.items()}
        if self.metrics_file:
            stamp = {**next(iter(found.values())).protocol, **self.stamp}
            if several:
                stamp["protocols"] = {p: f.protocol for p, f in found.items()}
            write_results(self.metrics_file, stamp, metrics, counts={p: f.counts for p, f in found.items()})
        return metrics
