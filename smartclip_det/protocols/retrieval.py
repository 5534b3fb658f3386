"""Image-text retrieval from saved vectors. torch is imported lazily, because it takes seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smartclip_det.metrics.bootstrap import Metric
from smartclip_det.protocols.base import Material, Protocol, Scores
from smartclip_det.protocols.options import RetrievalOptions


class Retrieval(Protocol[RetrievalOptions]):
    """``retrieval``: recall in both directions, with every mask mode that the vectors support."""

    def read(self, ann: Path, pred: Path, options: RetrievalOptions) -> Material:
        """Read vectors of the images of a caption file."""
        from smartclip_det.formats.retrieval_vectors import RetrievalVectors

        vectors = RetrievalVectors.load(pred)
        vectors.check_against(ann)
        return Material(None, vectors, {"images": len(vectors.images), "texts": len(vectors.texts)})

    def score(
        self,
        material: Material,
        options: RetrievalOptions,
        modes: Sequence[str] | None = None,
        progress: bool = False,
    ) -> Scores:
        """Recalls; ``modes`` restricts the mask modes."""
        from smartclip_det.metrics.retrieval import modes_of, recall_metrics

        vectors = material.found
        return Scores(recall_metrics(vectors, modes or modes_of(vectors), progress=progress))

    def facts(self, material: Material, options: RetrievalOptions) -> dict[str, Any]:
        """Definition of the metrics, and metadata of the vectors."""
        return {"ties": "against", **material.found.stamp}

    def resampled(self, material: Material, options: RetrievalOptions) -> tuple[Metric, int]:
        """Recalls with one mask mode."""
        from smartclip_det.metrics.retrieval import retrieval_metric

        metric: tuple[Metric, int] = retrieval_metric(material.found, options.scoring)
        return metric

    def compared(self, options: RetrievalOptions) -> Mapping[str, Any]:
        """The mask mode."""
        return {"scoring": options.scoring}
