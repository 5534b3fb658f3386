"""The MMEngine metric of alignment runs; needs neither mmdet nor mmcv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from smartclip_det.core.errors import check_choice
from smartclip_det.evaluation.retrieval import presence_map, retrieval_metrics
from smartclip_det.evaluation.stamp import protocol_stamp, write_results

SCORINGS = ("masked", "plain")


@METRICS.register_module()
class AlignmentMetric(BaseMetric):
    """Retrieval by each kind of caption and mAP of zero-shot presence, scored masked and plain.

    ``t2i_r1_long_masked``, ``i2t_r5_short_plain``, ``map_shape_masked``, ...; the same name without its ending is the
    value of ``scoring``.
    """

    def __init__(
        self, scoring: str = "masked", metrics_file: str | None = None, stamp: Mapping[str, Any] | None = None,
        collect_device: str = "cpu", prefix: str | None = None,
    ) -> None:  # fmt: skip
        """Build.

        Args:
            scoring: ``masked`` or ``plain``: what stands under the short names.
            metrics_file: stamped JSON to write.
            stamp: further facts for the stamp.
            collect_device: where ranks gather.
            prefix: prefix of the metric names.
        """
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.scoring = check_choice("scoring", scoring, SCORINGS)
        self.metrics_file, self.stamp = metrics_file, dict(stamp or {})

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep what retrieval and presence need of each image."""
        for s in data_samples:
            texts = {
                kind: (torch.stack([e for e, _ in found]), torch.stack([m for _, m in found]).to(torch.uint8))
                for kind, found in s["text_features"].items()
                if found
            }
            self.results.append((s["img_id"], s["image_embed"], texts, s["presence_scores"], s["present"]))

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """All metrics, and the short names."""
        images = torch.stack([r[1] for r in results])
        metrics: dict[str, float] = {}
        for kind in dict.fromkeys(k for r in results for k in r[2]):
            rows = [(i, *r[2][kind]) for i, r in enumerate(results) if kind in r[2]]
            owner = torch.tensor([i for i, embeds, _ in rows for _ in embeds])
            embeds, masks = torch.cat([e for _, e, _ in rows]), torch.cat([m for _, _, m in rows]).float()
            for scoring in SCORINGS:
                found = retrieval_metrics(images, embeds, masks if scoring == "masked" else None, owner)
                metrics.update({f"{k}_{kind}_{scoring}": v for k, v in found.items()})
            metrics[f"mask_density_{kind}"] = float(masks.mean())
        metrics.update(self._presence(results))
        ending = f"_{self.scoring}"
        metrics.update({k.removesuffix(ending): v for k, v in list(metrics.items()) if k.endswith(ending)})
        if self.metrics_file:
            stamp = protocol_stamp("alignment", images=len(results), ties="against", scoring=self.scoring, **self.stamp)
            write_results(self.metrics_file, stamp, metrics)
        return metrics

    def _presence(self, results: list[Any]) -> dict[str, float]:
        vocabularies = (self.dataset_meta or {}).get("vocabularies", {})
        metrics = {}
        for name, classes in vocabularies.items():
            index = {c: i for i, c in enumerate(classes)}
            present = np.zeros((len(results), len(classes)), dtype=bool)
            for row, r in enumerate(results):
                present[row, [index[c] for c in r[4][name]]] = True
            for scoring in SCORINGS:
                scores = torch.stack([r[3][name][scoring] for r in results]).numpy()
                metrics[f"map_{name}_{scoring}"] = presence_map(present, scores)
        return metrics
