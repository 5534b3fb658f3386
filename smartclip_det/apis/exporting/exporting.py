"""Export models to ONNX files and check the files against PyTorch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from smartclip_det.apis.exporting.checking import (
    TOLERANCES,
    UNMATCHED_SHARES,
    Arrays,
    Comparison,
    Runner,
    check_images,
    compare_detections,
    compare_values,
    onnx_runner,
    openvino_runner,
)
from smartclip_det.apis.exporting.graph_bank import bank_rows, check_input_policy, write_bank
from smartclip_det.apis.exporting.graphs import Graph, OneStageGraph, TowerGraph, TwoStageGraph
from smartclip_det.apis.exporting.inputs import (
    Preprocessing,
    check_size,
    detector_size,
    fix_input,
    tower_input,
    tower_preprocessing,
)
from smartclip_det.apis.exporting.onnx_file import open_session, write_onnx
from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.models.boxes import Photograph


@dataclass(frozen=True)
class ExportOptions:
    """What to export and how to check it.

    Attributes:
        out: output file.
        config: config of a one-stage or two-stage detector; None for the image tower of ``encoder`` or ``arch``.
        checkpoint: weights of the detector; None for random heads.
        encoder: towers, a name of public weights or a file; with ``config`` its ``towers.checkpoint``.
        arch: architecture with random weights, without ``config``.
        cfg_options: config overrides.
        texts: class names.
        templates: prompt templates.
        bank_input: make the bank an input of the graph; rows of ``texts`` are written to a ``.npz`` next to it.
        size: (H, W) of the input; None for the size of the config or tower.
        threshold: minimum score of a detection; None for the config's.
        dense_mode: how a tower's last block computes the dense map.
        fp16: export tower and neck in fp16.
        check: images or folders to compare on; empty for toy scenes.
        openvino: also compare the file in OpenVINO.
    """

    out: Path
    config: str | None = None
    checkpoint: str | None = None
    encoder: str | None = None
    arch: str | None = None
    cfg_options: dict[str, Any] | None = None
    texts: Sequence[str] = ()
    templates: str = "photo"
    bank_input: bool = False
    size: tuple[int, int] | None = None
    threshold: float | None = None
    dense_mode: str = "value"
    fp16: bool = False
    check: Sequence[Path] = ()
    openvino: bool = False

    @property
    def precision(self) -> str:
        """Precision of tower and neck."""
        return "fp16" if self.fp16 else "fp32"


@dataclass
class ExportResult:
    """Result of an export.

    Attributes:
        path: the ONNX file.
        bank: ``.npz`` with the rows of the names, for a bank input.
        metadata: metadata of the file.
        comparisons: one per runtime.
        pictures: description of the images compared.
        runs: callables for timing, of PyTorch and each runtime, from an image to its result.
    """

    path: Path
    bank: Path | None
    metadata: dict[str, Any]
    comparisons: list[Comparison]
    pictures: str
    runs: dict[str, Any] = field(repr=False)


class Subject(ABC):
    """A model to export: its graph, and reference results by PyTorch."""

    rule: Preprocessing
    graph: Graph

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Model-specific metadata of the file."""

    @abstractmethod
    def inputs(self, image: Image.Image) -> Arrays:
        """Graph inputs of an image."""

    @abstractmethod
    def expected(self, image: Image.Image) -> Arrays:
        """Reference result by PyTorch's public path."""

    @abstractmethod
    def compare(self, image: Image.Image, runs: Sequence[tuple[Comparison, Runner]]) -> None:
        """Add one image's differences for each runtime; PyTorch runs once."""


class Tower(Subject):
    """An image tower."""

    def __init__(self, options: ExportOptions) -> None:
        """Load the towers."""
        from smartclip_det.models.towers.source import load_encoder

        source = {"checkpoint": options.encoder} if options.encoder else {"arch": options.arch}
        self.towers = load_encoder(source)
        tower = getattr(self.towers, "image_tower", None)
        if tower is None:
            raise UserError(
                f"{options.encoder} is loaded by open_clip or timm, which have their own exporters. export supports "
                "image towers in the OpenAI layout (CLIP, Long-CLIP, SmartCLIP) and those of the toy world."
            )
        self.dense_mode = check_choice("dense_mode", options.dense_mode, self.towers.dense_modes)
        side = self.towers.config.image_size
        size = check_size(options.size or (side, side), self.towers.config.patch_size)
        self.rule = tower_preprocessing(self.towers, size)
        self.graph = TowerGraph(tower.eval(), self.dense_mode)

    def facts(self) -> dict[str, Any]:
        """Hashes and sizes of the towers."""
        hashes = {"towers": self.towers.checkpoint_hash}
        return {"hashes": hashes, "dense_mode": self.dense_mode, "towers": self.towers.config.to_dict()}

    def inputs(self, image: Image.Image) -> Arrays:
        """The normalised image."""
        return {"images": tower_input(image, self.rule).numpy()}

    @torch.no_grad()
    def expected(self, image: Image.Image) -> Arrays:
        """By ``encode_image`` and ``encode_dense``."""
        batch = tower_input(image, self.rule)
        found = self.towers.encode_image(batch), self.towers.encode_dense(batch, self.dense_mode)
        return dict(zip(self.graph.outputs, (v.numpy() for v in found), strict=True))

    def compare(self, image: Image.Image, runs: Sequence[tuple[Comparison, Runner]]) -> None:
        """Compare all values."""
        expected, inputs = self.expected(image), self.inputs(image)
        for comparison, run in runs:
            compare_values(comparison, expected, run(inputs))


class Detector(Subject):
    """A one-stage or two-stage detector and its vocabulary, scored as by :class:`Predictor`."""

    def __init__(self, options: ExportOptions) -> None:
        """Load the detector and encode the vocabulary."""
        from smartclip_det.apis.predictor_options import PredictorOptions, load_predictor

        assert options.config is not None
        self.options, self.config = options, options.config
        predictor = load_predictor(
            PredictorOptions(options.config, options.checkpoint, options.encoder, None, "cpu", options.cfg_options)
        )
        detector = getattr(predictor.family, "detector", None)
        if detector is None:
            raise UserError(f"{options.config} is of a {predictor.family.kind}, which cannot be exported.")
        if getattr(getattr(detector, "roi_head", None), "mask_head", None) is not None:
            print("note: the mask head of this detector is not exported; the file predicts boxes.")
        predictor.templates = options.templates
        self.family: Any = predictor.family
        self.bank = predictor.set_vocabulary(list(options.texts) or ["object"])
        if options.bank_input:
            check_input_policy(predictor.policy)
        size = options.size or detector_size(self._dataset(), detector.data_preprocessor.pad_size_divisor)
        self.rule = fix_input(self.family, check_size(size, detector.backbone.image_tower.patch_size))
        head = getattr(detector, "bbox_head", None) or detector.roi_head
        self.full = head.max_per_img
        self.threshold = float(head.score_thr if options.threshold is None else options.threshold)
        shared: dict[str, Any] = {"fold": not options.bank_input, "threshold": self.threshold}
        if hasattr(detector, "roi_head"):
            self.graph = TwoStageGraph(detector, predictor.policy, self.bank, size=self.rule.size, **shared)
        else:
            self.graph = OneStageGraph(detector, predictor.policy, self.bank, **shared)

    def _dataset(self) -> Any:
        from smartclip_det.engine.config import load_config

        return load_config(self.config, self.options.cfg_options).test_dataloader.dataset

    def facts(self) -> dict[str, Any]:
        """Names, policy, hashes and thresholds."""
        from smartclip_det.models.towers.checkpoints import state_hash
        from smartclip_det.protocols.stamp import file_hash

        hashes = {
            "towers": self.family.towers.checkpoint_hash,
            "detector": state_hash(self.family.detector.state_dict()),
        }
        if self.options.checkpoint:
            hashes["checkpoint_sha256"] = file_hash(self.options.checkpoint)
        found = {
            "hashes": hashes,
            "policy": self.family.policy.to_dict(),
            "threshold": self.threshold,
            "max_detections": self.full,
            "config": self.config,
            "bank": dict(self.bank.provenance),
        }
        return found if self.options.bank_input else {**found, "names": list(self.bank.names)}

    def _batch(self, image: Image.Image) -> Any:
        data = self.family.pipeline({"img": np.ascontiguousarray(np.asarray(image)[..., ::-1])})
        return self.family.detector.data_preprocessor({k: [v] for k, v in data.items()}, False)

    def _rows(self) -> Arrays:
        if not self.options.bank_input:
            return {}
        embeds, masks = bank_rows(self.bank, self.family.policy)
        return {"embeds": embeds.numpy(), "masks": masks.numpy()}

    def inputs(self, image: Image.Image) -> Arrays:
        """The normalised, padded image, its size, and the rows of a bank input."""
        batch = self._batch(image)
        size = np.array([batch["data_samples"][0].img_shape[:2]], dtype=np.float32)
        return {"images": batch["inputs"].numpy(), "sizes": size, **self._rows()}

    @torch.no_grad()
    def expected(self, image: Image.Image) -> Arrays:
        """By the predictor's family, boxes in pixels of the image."""
        (encoded,) = self.family.encode([Photograph(image)], [None], 1)
        rows, labels, scores = self.family.select(encoded, self.bank, self.threshold, None)
        return {"boxes": encoded.boxes[rows].numpy(), "scores": scores.numpy(), "labels": labels.numpy()}

    def compare(self, image: Image.Image, runs: Sequence[tuple[Comparison, Runner]]) -> None:
        """Match detections."""
        expected, inputs = self.expected(image), self.inputs(image)
        scale = np.tile(inputs["sizes"][0, ::-1] / np.array(image.size, dtype=np.float32), 2)
        for comparison, run in runs:
            found = {k: v[0] for k, v in run(inputs).items()}
            kept = found["labels"] >= 0
            answer = {"boxes": found["boxes"][kept] / scale, **{k: found[k][kept] for k in ("scores", "labels")}}
            compare_detections(comparison, expected, answer, self.full, self.threshold)


def export_onnx(options: ExportOptions) -> ExportResult:
    """Export a model, check the file against PyTorch and, for a bank input, write the rows of the names.

    Raises:
        UserError: options are inconsistent, the model cannot be exported, or a package is missing.
    """
    _check(options)
    images, pictures = check_images(options.check)
    subject = Detector(options) if options.config else Tower(options)
    graph, size = subject.graph.eval().requires_grad_(False), subject.rule.size
    if options.fp16:
        graph.halve()
    metadata = {
        "kind": graph.kind,
        "preprocessing": subject.rule.to_dict(),
        "precision": options.precision,
        **_code(),
        **subject.facts(),
    }
    path = write_onnx(graph, size, options.out, metadata)
    bank = None
    if isinstance(subject, Detector) and options.bank_input and options.texts:
        bank = write_bank(subject.bank, subject.family.policy, options.out.with_suffix(".npz"))
    runners = {"onnxruntime": onnx_runner(open_session(path, torch.get_num_threads()))}
    if options.openvino:
        runners["openvino"] = openvino_runner(path, torch.get_num_threads())
    limits = TOLERANCES[options.precision], UNMATCHED_SHARES[options.precision]
    comparisons = [Comparison(name, *limits) for name in runners]
    for image in tqdm(images, desc="check", unit="image", disable=len(images) < 10):
        subject.compare(image, list(zip(comparisons, runners.values(), strict=True)))
    # All start from the image, so that preprocessing is timed alike.
    runs: dict[str, Any] = {"pytorch": lambda: subject.expected(images[0])}
    for name, run in runners.items():
        runs[name] = lambda run=run: run(subject.inputs(images[0]))
    return ExportResult(path, bank, metadata, comparisons, pictures, runs)


def _code() -> dict[str, str]:
    from smartclip_det.protocols.stamp import code_version

    return {"code": code_version(), "torch": torch.__version__}


def _check(options: ExportOptions) -> None:
    if options.config is None:
        given = [
            name
            for name, value in (
                ("--checkpoint", options.checkpoint),
                ("--cfg-options", options.cfg_options),
                ("--texts or --vocabulary", options.texts),
                ("--bank-input", options.bank_input),
                ("--threshold", options.threshold),
            )
            if value
        ]
        if given:
            raise UserError(f"{', '.join(given)} need --config: without it, export writes an image tower.")
        if bool(options.encoder) == bool(options.arch):
            raise UserError("Nothing to export: give --config CONFIG of a detector, --encoder NAME, or --arch NAME.")
        return
    if options.arch:
        raise UserError("--arch exports an image tower; with --config use --cfg-options towers.arch=NAME.")
    if not options.texts and not options.bank_input:
        raise UserError(
            "A detector needs class names: give --texts PHRASE... or --vocabulary NAMES, or --bank-input to make "
            "them an input."
        )
    if options.threshold is not None and not 0 <= options.threshold < 1:
        raise UserError(f"--threshold must be in [0, 1); given {options.threshold}.")
