"""MMEngine metric of alignment runs; requires neither mmdet nor mmcv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from smartclip_det.core.errors import check_choice
from smartclip_det.core.mask_modes import RETRIEVAL_MODES, mask_mode
from smartclip_det.core.similarity import masked_cosine, resolve_masks
from smartclip_det.formats.retrieval_vectors import RetrievalVectors
from smartclip_det.metrics.query_precision import (
    best_recalls,
    gains,
    mean_known,
    misbound,
    query_precisions,
    reader_recalls,
    separation,
)
from smartclip_det.metrics.retrieval import RECALLS, retrieval_metrics
from smartclip_det.protocols.base import Material
from smartclip_det.protocols.options import RetrievalOptions
from smartclip_det.protocols.registry import protocol_of
from smartclip_det.protocols.retrieval import Retrieval
from smartclip_det.protocols.stamp import protocol_stamp, write_results

#: Names of the kinds of captions in caption mAP.
_CAPTIONS = {"long": "full", "short": "short", "partial": "partial"}
#: Average precision of each query, by name of the mAP and mask mode.
Precisions = dict[str, dict[str, np.ndarray]]


@METRICS.register_module()
class AlignmentMetric(BaseMetric):
    """Retrieval recall for each kind of caption and mAP of zero-shot presence, for each mask mode.

    Names are ``t2i_r1_long_hard``, ``i2t_r5_short_off``, ``map_shape_hard``, ...: the last word is the mask mode, and
    the name without it repeats the value for ``scoring``. If the data set lists held-out phrases,
    ``t2i_r1_short_held_out_hard`` is over the texts that contain one (against all images), and
    ``map_colour_shape_held_out_hard`` is over those classes only.

    If the data set has caption ground truth (``tests.truth`` of CaptionDataset), ``map_caption_full_hard``,
    ``..._short_hard`` and ``..._partial_hard`` count all images that match a caption: mAP over distinct captions.
    ``map_caption_held_out_hard`` is over short captions with a held-out phrase. Recall comes with two references: the
    upper bound over all rankings (``t2i_r1_short_best``), and the expected recall of an oracle that knows which images
    match (``t2i_r1_short_reader``).

    ``map_colour_shape_bound_hard`` ignores images that show both words of a class on different objects only;
    ``auc_binding_hard`` is the probability that a matching image scores higher than one of these.

    ``mask_density_short`` is the fraction of dimensions that a text keeps, ``mask_unused_short`` the fraction that no
    text keeps.

    The metrics file also has ``intervals``: for each mAP and control, the gain of hard masks, with bootstrap intervals
    over queries.

    Retrieval is computed by the ``retrieval`` protocol, so ``tools/evaluate.py retrieval`` gives the same numbers for
    the vectors in ``out_file``.
    """

    def __init__(
        self,
        scoring: str = "hard",
        scorings: Sequence[str] = ("hard", "off"),
        metrics_file: str | None = None,
        out_file: str | None = None,
        stamp: Mapping[str, Any] | None = None,
        binding: str | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        """Initialise.

        Args:
            scoring: mask mode of the metrics without a suffix, one of ``scorings``.
            scorings: mask modes, from ``mask_modes.RETRIEVAL_MODES``.
            metrics_file: stamped JSON to write.
            out_file: ``.safetensors`` file for vectors; each kind of caption is written to ``NAME.KIND.safetensors``.
            stamp: additional entries of the stamp.
            binding: vocabulary of attribute-noun pairs for the binding metrics.
            collect_device: device on which ranks gather results.
            prefix: prefix of the metric names.
        """
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.scorings = [mask_mode(s, RETRIEVAL_MODES, "scorings") for s in scorings]
        self.scoring = mask_mode(scoring, self.scorings, "scoring")
        self.metrics_file, self.out_file, self.stamp = metrics_file, out_file, dict(stamp or {})
        self.binding = binding

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Collect vectors and presence labels of each image."""
        for s in data_samples:
            texts = {
                kind: (
                    s["captions"][kind],
                    torch.stack([e for e, _ in found]),
                    torch.stack([m for _, m in found]).to(torch.uint8),
                )
                for kind, found in s["text_features"].items()
                if found
            }
            self.results.append((s["img_id"], s["image_embed"], texts, s["presence_scores"], s["present"]))

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """All metrics, with and without mask-mode suffix."""
        images = torch.stack([r[1] for r in results])
        metrics: dict[str, float] = {}
        facts: dict[str, Any] = {}
        found: Precisions = {}
        for kind in dict.fromkeys(k for r in results for k in r[2]):
            vectors = self._vectors(kind, results, images)
            metrics.update(self._retrieval(kind, vectors))
            if "truth" in self._meta:
                found.update(self._captions(kind, vectors, [r[0] for r in results], metrics))
            facts[kind] = self._protocol.facts(Material(None, vectors), RetrievalOptions())
            if self.out_file:
                path = Path(self.out_file)
                vectors.save(path.with_name(f"{path.stem}.{kind}{path.suffix}"))
        found.update(self._presence(results, metrics))
        metrics.update({f"{n}_{mode}": mean_known(v) for n, by_mode in found.items() for mode, v in by_mode.items()})
        ending = f"_{self.scoring}"
        metrics.update({k.removesuffix(ending): v for k, v in list(metrics.items()) if k.endswith(ending)})
        if self.metrics_file:
            about = {"images": len(results), "scoring": self.scoring, "retrieval": facts, **self.stamp}
            stamp = protocol_stamp("alignment", **about)
            over = [s for s in self.scorings if s != "hard"]
            intervals = {name: gains(by_mode, over) for name, by_mode in found.items()}
            write_results(self.metrics_file, stamp, metrics, intervals={k: v for k, v in intervals.items() if v})
        return metrics

    @property
    def _meta(self) -> Mapping[str, Any]:
        return self.dataset_meta or {}

    @property
    def _phrases(self) -> dict[str, list[str]]:
        phrases: dict[str, list[str]] = self._meta.get("phrases", {})
        return phrases

    @property
    def _protocol(self) -> Retrieval:
        entry = protocol_of("retrieval")
        assert isinstance(entry, Retrieval)
        return entry

    def _vectors(self, kind: str, results: list[Any], images: torch.Tensor) -> RetrievalVectors:
        """Vectors of all images, and of the texts of one kind."""
        rows = [(i, *r[2][kind]) for i, r in enumerate(results) if kind in r[2]]
        owner = torch.tensor([i for i, texts, _, _ in rows for _ in texts])
        texts = [t for _, mine, _, _ in rows for t in mine]
        embeds, hard = torch.cat([e for _, _, e, _ in rows]), torch.cat([m for _, _, _, m in rows]).float()
        stamp = {"captions": kind, **self.stamp}
        return RetrievalVectors(images, embeds, owner, hard, [str(r[0]) for r in results], texts, stamp)

    def _retrieval(self, kind: str, vectors: RetrievalVectors) -> dict[str, float]:
        hard, texts, owner = vectors.masks, vectors.sentences, vectors.owner
        assert hard is not None
        never = (hard == 0).all(dim=0).float()
        metrics = {f"mask_density_{kind}": float(hard.mean()), f"mask_unused_{kind}": float(never.mean())}
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

    def _captions(
        self, kind: str, vectors: RetrievalVectors, image_ids: Sequence[Any], metrics: dict[str, float]
    ) -> Precisions:
        """Average precision of each distinct caption over all matching images; reference recalls."""
        rows = {t: n for n, t in enumerate(vectors.sentences)}
        texts, kept = list(rows), list(rows.values())
        true = self._meta["truth"].table(texts, image_ids).T
        column = {t: n for n, t in enumerate(texts)}
        counts = true.sum(axis=0)[[column[t] for t in vectors.sentences]]
        for k, value in best_recalls(vectors.sentences, vectors.owner.numpy(), RECALLS).items():
            metrics[f"t2i_r{k}_{kind}_best"] = value
        for k, value in reader_recalls(counts, RECALLS).items():
            metrics[f"t2i_r{k}_{kind}_reader"] = value
        out: Precisions = {f"map_caption_{_CAPTIONS[kind]}": {}}
        with_phrase = {
            n: [c for c, t in enumerate(texts) if any(p in t for p in phrases)]
            for n, phrases in self._phrases.items()
            if kind == "short"
        }
        assert vectors.masks is not None
        for mode in self.scorings:
            if mode == "shuffled" and len(texts) < 2:
                continue
            masks = resolve_masks(vectors.masks[kept], mode, texts)
            values = query_precisions(true, masked_cosine(vectors.images, vectors.texts[kept], masks).numpy())
            out[f"map_caption_{_CAPTIONS[kind]}"][mode] = values
            for name, columns in with_phrase.items():
                if columns:
                    out.setdefault(f"map_caption_{name}", {})[mode] = values[columns]
        return out

    def _presence(self, results: list[Any], metrics: dict[str, float]) -> Precisions:
        """Average precision of each class of each vocabulary; binding metrics."""
        vocabularies = self._meta.get("vocabularies", {})
        if self.binding is not None:
            check_choice("binding", self.binding, list(vocabularies))
        out: Precisions = {}
        for name, classes in vocabularies.items():
            index = {c: i for i, c in enumerate(classes)}
            present = np.zeros((len(results), len(classes)), dtype=bool)
            for row, r in enumerate(results):
                present[row, [index[c] for c in r[4][name]]] = True
            wrong = misbound(present, classes) if name == self.binding else None
            for scoring in self.scorings:
                if scoring not in results[0][3][name]:
                    continue
                scores = torch.stack([r[3][name][scoring] for r in results]).numpy()
                values = out.setdefault(f"map_{name}", {})[scoring] = query_precisions(present, scores)
                for phrase, members in self._phrases.items():
                    columns = [index[c] for c in members if c in index]
                    if columns:
                        out.setdefault(f"map_{name}_{phrase}", {})[scoring] = values[columns]
                if wrong is not None:
                    bound = query_precisions(present, scores, wrong)
                    out.setdefault(f"map_{name}_bound", {})[scoring] = bound
                    metrics[f"auc_binding_{scoring}"] = separation(present, wrong, scores)
        return out
