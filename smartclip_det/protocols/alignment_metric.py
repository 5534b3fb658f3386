"""The MMEngine metric of alignment runs; needs neither mmdet nor mmcv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from smartclip_det.core.errors import check_choice
from smartclip_det.core.mask_modes import SCORINGS
from smartclip_det.core.similarity import resolve_masks
from smartclip_det.metrics.retrieval import presence_map, retrieval_metrics
from smartclip_det.protocols.stamp import protocol_stamp, write_results


@METRICS.register_module()
class AlignmentMetric(BaseMetric):
    """Retrieval by each kind of caption and mAP of zero-shot presence, by scoring.

    ``t2i_r1_long_masked``, ``i2t_r5_short_plain``, ``map_shape_masked``, ...; the same name without its ending is the
    value of ``scoring``. Where the data set lists phrases, ``t2i_r1_short_held_out_masked`` counts the texts that hold
    one of them (against all images), and ``map_colour_shape_held_out_masked`` those classes alone.
    """

    def __init__(
        self, scoring: str = "masked", scorings: Sequence[str] = ("masked", "plain"), metrics_file: str | None = None,
        stamp: Mapping[str, Any] | None = None, collect_device: str = "cpu", prefix: str | None = None,
    ) -> None:  # fmt: skip
        """Build.

        Args:
            scoring: what stands under the short names, one of ``scorings``.
            scorings: names in ``mask_modes.SCORINGS``.
            metrics_file: stamped JSON to write.
            stamp: further facts for the stamp.
            collect_device: where ranks gather.
            prefix: prefix of the metric names.
        """
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.scorings = [check_choice("scorings", s, SCORINGS) for s in scorings]
        self.scoring = check_choice("scoring", scoring, self.scorings)
        self.metrics_file, self.stamp = metrics_file, dict(stamp or {})

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep what retrieval and presence need of each image."""
        for s in data_samples:
            texts = {
                kind: (s["captions"][kind], torch.stack([e for e, _ in found]),
                       torch.stack([m for _, m in found]).to(torch.uint8))
                for kind, found in s["text_features"].items()
                if found
            }  # fmt: skip
            self.results.append((s["img_id"], s["image_embed"], texts, s["presence_scores"], s["present"]))

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """All metrics, and the short names."""
        images = torch.stack([r[1] for r in results])
        metrics: dict[str, float] = {}
        for kind in dict.fromkeys(k for r in results for k in r[2]):
            metrics.update(self._retrieval(kind, results, images))
        metrics.update(self._presence(results))
        ending = f"_{self.scoring}"
        metrics.update({k.removesuffix(ending): v for k, v in list(metrics.items()) if k.endswith(ending)})
        if self.metrics_file:
            stamp = protocol_stamp("alignment", images=len(results), ties="against", scoring=self.scoring, **self.stamp)
            write_results(self.metrics_file, stamp, metrics)
        return metrics

    @property
    def _phrases(self) -> dict[str, list[str]]:
        return (self.dataset_meta or {}).get("phrases", {})

    def _retrieval(self, kind: str, results: list[Any], images: torch.Tensor) -> dict[str, float]:
        rows = [(i, *r[2][kind]) for i, r in enumerate(results) if kind in r[2]]
        owner = torch.tensor([i for i, texts, _, _ in rows for _ in texts])
        texts = [t for _, mine, _, _ in rows for t in mine]
        embeds, hard = torch.cat([e for _, _, e, _ in rows]), torch.cat([m for _, _, _, m in rows]).float()
        metrics = {f"mask_density_{kind}": float(hard.mean())}
        for scoring in self.scorings:
            masks = resolve_masks(hard, SCORINGS[scoring], texts)
            found = retrieval_metrics(images, embeds, masks, owner)
            metrics.update({f"{k}_{kind}_{scoring}": v for k, v in found.items()})
            for name, phrases in self._phrases.items():
                kept = [n for n, t in enumerate(texts) if any(p in t for p in phrases)]
                if kept:
                    part = retrieval_metrics(images, embeds[kept], None if masks is None else masks[kept], owner[kept])
                    metrics.update({f"{k}_{kind}_{name}_{scoring}": v for k, v in part.items() if k.startswith("t2i")})
        return metrics

    def _presence(self, results: list[Any]) -> dict[str, float]:
        vocabularies = (self.dataset_meta or {}).get("vocabularies", {})
        metrics = {}
        for name, classes in vocabularies.items():
            index = {c: i for i, c in enumerate(classes)}
            present = np.zeros((len(results), len(classes)), dtype=bool)
            for row, r in enumerate(results):
                present[row, [index[c] for c in r[4][name]]] = True
            for scoring in self.scorings:
                if scoring not in results[0][3][name]:
                    continue
                scores = torch.stack([r[3][name][scoring] for r in results]).numpy()
                metrics[f"map_{name}_{scoring}"] = presence_map(present, scores)
                for phrase, members in self._phrases.items():
                    columns = [index[c] for c in members if c in index]
                    if columns:
                        found = presence_map(present[:, columns], scores[:, columns])
                        metrics[f"map_{name}_{phrase}_{scoring}"] = found
        return metrics
