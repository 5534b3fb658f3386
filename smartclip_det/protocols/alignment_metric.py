"""The MMEngine metric of alignment runs; needs neither mmdet nor mmcv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from smartclip_det.core.mask_modes import RETRIEVAL_MODES, mask_mode
from smartclip_det.core.similarity import resolve_masks
from smartclip_det.formats.retrieval_vectors import RetrievalVectors
from smartclip_det.metrics.retrieval import presence_map, retrieval_metrics
from smartclip_det.protocols.base import Material
from smartclip_det.protocols.options import RetrievalOptions
from smartclip_det.protocols.registry import protocol_of
from smartclip_det.protocols.retrieval import Retrieval
from smartclip_det.protocols.stamp import protocol_stamp, write_results


@METRICS.register_module()
class AlignmentMetric(BaseMetric):
    """Retrieval by each kind of caption and mAP of zero-shot presence, by scoring.

    ``t2i_r1_long_hard``, ``i2t_r5_short_off``, ``map_shape_hard``, ...: the last word is the mask mode, and the same
    name without it is the value of ``scoring``. Where the data set lists phrases, ``t2i_r1_short_held_out_hard`` counts
    the texts that hold one of them (against all images), and ``map_colour_shape_held_out_hard`` those classes alone.

    Retrieval is the ``retrieval`` protocol of the registry: the vectors that ``out_file`` keeps score the same by
    ``tools/evaluate.py retrieval``.
    """

    def __init__(
        self, scoring: str = "hard", scorings: Sequence[str] = ("hard", "off"), metrics_file: str | None = None,
        out_file: str | None = None, stamp: Mapping[str, Any] | None = None, collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:  # fmt: skip
        """Build.

        Args:
            scoring: what stands under the short names, one of ``scorings``.
            scorings: mask modes, of ``mask_modes.RETRIEVAL_MODES``.
            metrics_file: stamped JSON to write.
            out_file: vectors to write, ``.safetensors``; each kind of caption has a file, ``NAME.KIND.safetensors``.
            stamp: further facts for the stamp.
            collect_device: where ranks gather.
            prefix: prefix of the metric names.
        """
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.scorings = [mask_mode(s, RETRIEVAL_MODES, "scorings") for s in scorings]
        self.scoring = mask_mode(scoring, self.scorings, "scoring")
        self.metrics_file, self.out_file, self.stamp = metrics_file, out_file, dict(stamp or {})

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
        facts: dict[str, Any] = {}
        for kind in dict.fromkeys(k for r in results for k in r[2]):
            vectors = self._vectors(kind, results, images)
            metrics.update(self._retrieval(kind, vectors))
            facts[kind] = self._protocol.facts(Material(None, vectors), RetrievalOptions())
            if self.out_file:
                path = Path(self.out_file)
                vectors.save(path.with_name(f"{path.stem}.{kind}{path.suffix}"))
        metrics.update(self._presence(results))
        ending = f"_{self.scoring}"
        metrics.update({k.removesuffix(ending): v for k, v in list(metrics.items()) if k.endswith(ending)})
        if self.metrics_file:
            about = {"images": len(results), "scoring": self.scoring, "retrieval": facts, **self.stamp}
            stamp = protocol_stamp("alignment", **about)
            write_results(self.metrics_file, stamp, metrics)
        return metrics

    @property
    def _phrases(self) -> dict[str, list[str]]:
        return (self.dataset_meta or {}).get("phrases", {})

    @property
    def _protocol(self) -> Retrieval:
        entry = protocol_of("retrieval")
        assert isinstance(entry, Retrieval)
        return entry

    def _vectors(self, kind: str, results: list[Any], images: torch.Tensor) -> RetrievalVectors:
        """All images, and the texts of one kind."""
        rows = [(i, *r[2][kind]) for i, r in enumerate(results) if kind in r[2]]
        owner = torch.tensor([i for i, texts, _, _ in rows for _ in texts])
        texts = [t for _, mine, _, _ in rows for t in mine]
        embeds, hard = torch.cat([e for _, _, e, _ in rows]), torch.cat([m for _, _, _, m in rows]).float()
        stamp = {"captions": kind, **self.stamp}
        return RetrievalVectors(images, embeds, owner, hard, [str(r[0]) for r in results], texts, stamp)

    def _retrieval(self, kind: str, vectors: RetrievalVectors) -> dict[str, float]:
        hard, texts, owner = vectors.masks, vectors.sentences, vectors.owner
        assert hard is not None
        metrics = {f"mask_density_{kind}": float(hard.mean())}
        found = self._protocol.score(Material(None, vectors), RetrievalOptions(), self.scorings).metrics
        for name, value in found.items():
            recall, _, mode = name.rpartition("_")
            metrics[f"{recall}_{kind}_{mode}"] = value
        for name, phrases in self._phrases.items():
            kept = [n for n, t in enumerate(texts) if any(p in t for p in phrases)]
            for mode in self.scorings if kept else ():
                masks = resolve_masks(hard, mode, texts)
                part = retrieval_metrics(
                    vectors.images, vectors.texts[kept], None if masks is None else masks[kept], owner[kept]
                )
                metrics.update({f"{k}_{kind}_{name}_{mode}": v for k, v in part.items() if k.startswith("t2i")})
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
