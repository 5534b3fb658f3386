"""Base class of protocols: read annotations and predictions, score, stamp and compare them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from smartclip_det.core.errors import UserError
from smartclip_det.metrics.bootstrap import Metric, paired_bootstrap
from smartclip_det.protocols.options import Options
from smartclip_det.protocols.stamp import file_hash, protocol_stamp
from smartclip_det.utils.garbage_collection import without_collector

O = TypeVar("O", bound=Options)  # noqa: E741


@dataclass
class Material:
    """Validated annotations and predictions.

    Attributes:
        truth: annotations.
        found: predictions.
        counts: counts from validation.
    """

    truth: Any
    found: Any
    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class Scores:
    """Metrics by their public names.

    Attributes:
        metrics: unrounded values; -1 if undefined.
        counts: counts of inputs.
        per_class: value of each class, None without ground truth.
    """

    metrics: dict[str, float]
    counts: dict[str, int] = field(default_factory=dict)
    per_class: dict[str, float | None] = field(default_factory=dict)


@dataclass
class Evaluation(Scores):
    """Scores with their stamp.

    Attributes:
        protocol: the stamp.
    """

    protocol: dict[str, Any] = field(default_factory=dict)


class Protocol(ABC, Generic[O]):
    """A protocol. Saved files and runs are both scored here, so their numbers agree."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def read(self, ann: Path, pred: Path, options: O) -> Material:
        """Read and validate saved files."""

    @abstractmethod
    def score(self, material: Material, options: O) -> Scores:
        """The metrics."""

    @abstractmethod
    def facts(self, material: Material, options: O) -> dict[str, Any]:
        """Entries of the stamp in addition to the options."""

    def resampled(self, material: Material, options: O) -> tuple[Metric, int]:
        """Metrics as a function of image weights, and the number of images.

        Raises:
            UserError: if the protocol does not support comparison.
        """
        raise UserError(
            f"{self.name} cannot be compared; --compare supports coco, ov-coco (joint), lvis, ov-lvis, voc, "
            "refcoco and retrieval."
        )

    def stamp(
        self, material: Material, options: O, ann: str | Path, pred: str | Path | None = None, **more: Any
    ) -> dict[str, Any]:
        """Build the stamp: the protocol's facts, its options, and hashes of the files.

        Args:
            material: the scored material.
            options: options of the protocol.
            ann: annotation file or folder.
            pred: prediction file, if any.
            more: additional entries.
        """
        hashes = {"ann_sha256": file_hash(ann)} | ({} if pred is None else {"pred_sha256": file_hash(pred)})
        return protocol_stamp(self.name, **{**options.facts(), **self.facts(material, options), **hashes, **more})

    def evaluate(self, ann: str | Path, pred: str | Path, options: O) -> Evaluation:
        """Score one prediction file."""
        ann, pred = Path(ann), Path(pred)
        with without_collector():
            material = self.read(ann, pred, options)
            scores = self.score(material, options)
        stamp = self.stamp(material, options, ann, pred)
        return Evaluation(scores.metrics, {**material.counts, **scores.counts}, scores.per_class, stamp)

    def compare(
        self,
        ann: str | Path,
        first: str | Path,
        second: str | Path,
        options: O,
        *,
        resamples: int = 1000,
        seed: int = 0,
        progress: bool = True,
    ) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
        """Paired bootstrap between two prediction files.

        Returns:
            The stamp and, for each metric, the result of :func:`bootstrap.paired_bootstrap`.
        """
        ann, files = Path(ann), (Path(first), Path(second))
        metrics: list[Metric] = []
        images = 0
        for pred in files:
            with without_collector():
                metric, images = self.resampled(self.read(ann, pred, options), options)
            metrics.append(metric)
        outcome = paired_bootstrap(metrics[0], metrics[1], images, resamples=resamples, seed=seed, progress=progress)
        stamp = protocol_stamp(
            self.name,
            test="paired bootstrap over images",
            **self.compared(options),
            resamples=resamples,
            seed=seed,
            ann_sha256=file_hash(ann),
            a=str(first),
            b=str(second),
            a_sha256=file_hash(files[0]),
            b_sha256=file_hash(files[1]),
        )
        return stamp, outcome

    def compared(self, options: O) -> Mapping[str, Any]:
        """Options that a comparison depends on, for its stamp."""
        return options.facts()
