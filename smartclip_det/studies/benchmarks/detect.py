"""Benchmark a detector's stages by vocabulary size, and whole detectors and towers against peers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmengine.registry import init_default_scope

from smartclip_det.engine.config import fit_norm_layers, load_config
from smartclip_det.models.selection import select_detections
from smartclip_det.studies.benchmarks import peers
from smartclip_det.studies.benchmarks.measuring import PeakMemory, generated_bank, in_turns, show, synchronise

RCNN = "configs/ov_coco/open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco.py"
OWL = "configs/owl/open-vocab-owl_smartclip-b16_8xb4-12e_ov-coco.py"
STAGES = ("tower", "pyramid", "rpn", "head", "scores", "selection")


def build(path: str, device: str, seed: int = 0, frozen: bool = True) -> Any:
    """Build a detector of a config with random weights; ``frozen=False`` also trains its tower."""
    from mmdet.registry import MODELS

    from smartclip_det import register_detection  # noqa: F401 (registers all modules)

    config = load_config(path)
    fit_norm_layers(config, distributed=False)
    init_default_scope("mmdet")
    if not frozen:
        config.model.backbone.frozen = False
    torch.manual_seed(seed)
    detector = MODELS.build(config.model)
    detector.init_weights()
    return detector.eval().to(device)


def sample_of(size: int) -> DetDataSample:
    """Data sample of a square image without resizing."""
    meta = {
        "img_shape": (size, size),
        "ori_shape": (size, size),
        "scale_factor": (1.0, 1.0),
        "pad_shape": (size, size),
        "batch_input_shape": (size, size),
        "img_id": 1,
    }
    return DetDataSample(metainfo=meta)


class Stages:
    """Time the components of the two-stage detector one after the other."""

    def __init__(self, detector: Any, image: torch.Tensor) -> None:
        self.detector, self.image = detector, image

    @torch.no_grad()
    def run(self, bank: Any) -> dict[str, dict[str, float]]:
        """Return seconds and peak MiB of each stage for one image."""
        d, sample = self.detector, sample_of(self.image.shape[-1])
        rows: dict[str, dict[str, float]] = {}

        def stage(name: str, work: Callable[[], Any]) -> Any:
            with PeakMemory() as memory:
                synchronise()
                begin = time.perf_counter()
                result = work()
                synchronise()
                rows[name] = {"seconds": time.perf_counter() - begin}
            rows[name]["peak_mib"] = memory.mib
            return result

        features = stage("tower", lambda: d.backbone.features(self.image, dense=True))
        pyramid = stage("pyramid", lambda: tuple(d.neck(features.taps)))
        proposals = stage("rpn", lambda: d.rpn_head.predict(pyramid, [sample], rescale=False))
        rois = bbox2roi([p.bboxes for p in proposals])
        head = d.roi_head

        def region_vectors() -> Any:
            vectors, deltas = head.bbox_head(head.pool(pyramid, rois))
            return vectors, deltas, head.dense_vectors(features.dense, rois, d.policy)

        vectors, deltas, dense = stage("head", region_vectors)
        scores = stage("scores", lambda: head.scores(vectors, dense, proposals[0].scores, bank, d.policy))
        boxes = head.bbox_head.bbox_coder.decode(rois[:, 1:], deltas, max_shape=sample.img_shape)
        stage(
            "selection",
            lambda: select_detections(boxes, scores, score_threshold=1e-4, iou_threshold=0.5, max_detections=300),
        )
        return rows


def by_vocabulary(size: int, sizes: list[int], rounds: int, device: str) -> dict[str, Any]:
    """Measure median milliseconds of each stage per vocabulary size, interleaved."""
    detector = build(RCNN, device)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    banks = {k: generated_bank(k, 512).to(device) for k in sizes}
    stages = Stages(detector, image)
    stages.run(banks[sizes[0]])
    runs: dict[int, list[dict[str, dict[str, float]]]] = {k: [] for k in sizes}
    for _ in range(rounds):
        for k in sizes:
            runs[k].append(stages.run(banks[k]))
    out: dict[str, Any] = {}
    print(f"\ntwo-stage ViT-B/16, {size} px, {device}: median ms of {rounds} runs (peak MiB added)")
    print("  names  " + "".join(f"{s:>18s}" for s in STAGES) + f"{'whole':>12s}{'scores+select':>15s}")
    for k in sizes:
        row = {
            s: {q: float(torch.tensor([r[s][q] for r in runs[k]]).median()) for q in ("seconds", "peak_mib")}
            for s in STAGES
        }
        whole = float(torch.tensor([sum(r[s]["seconds"] for s in STAGES) for r in runs[k]]).median())
        share = (row["scores"]["seconds"] + row["selection"]["seconds"]) / whole
        out[str(k)] = {"stages": row, "whole": whole, "share_of_scores_and_selection": share}
        cells = "".join(f"{row[s]['seconds'] * 1e3:10.1f} ({row[s]['peak_mib']:5.0f})" for s in STAGES)
        print(f"{k:7d}  {cells}{whole * 1e3:12.1f}{share:14.1%}")
    return out


def training(size: int, rounds: int, device: str, batch: int = 2) -> dict[str, Any]:
    """Benchmark a training step of the two-stage detector with the tower frozen (the recipe) and trained."""
    from mmengine.structures import InstanceData

    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    corner = torch.rand(7, 2, generator=torch.Generator().manual_seed(1)) * size * 0.6
    boxes = torch.cat([corner, corner + size * 0.3], dim=1).to(device)
    bank = generated_bank(65, 512).to(device)
    variants: dict[str, Callable[[], Any]] = {}
    for name, frozen in (("frozen tower", True), ("trained tower", False)):
        detector = build(RCNN, device, frozen=frozen).train()
        detector.set_text_bank(bank)

        def step(d: Any = detector) -> None:
            samples = [sample_of(size) for _ in range(batch)]
            for s in samples:
                s.gt_instances = InstanceData(bboxes=boxes.clone(), labels=torch.arange(7, device=boxes.device))
            losses = d.loss(images, samples)
            total = sum(v if isinstance(v, torch.Tensor) else sum(v) for k, v in losses.items() if "loss" in k)
            d.zero_grad()
            total.backward()

        variants[name] = step
    rows = in_turns(variants, rounds)
    show(f"training step, ViT-B/16, {size} px, batch {batch}, {device}", rows, "frozen tower")
    return rows


def towers(size: int, rounds: int, device: str) -> dict[str, Any]:
    """Benchmark our dense ViT-B/16 against the same tower of peers, at one input size."""
    from smartclip_det.models.towers import SmartCLIP

    ours = SmartCLIP.from_arch("ViT-B-16").image_tower.eval().to(device)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    variants: dict[str, Callable[[], Any]] = {"ours, dense": lambda: ours.features(image, dense_mode="value")}
    for name, make in (("open_clip", peers.open_clip_tower), ("transformers", peers.transformers_tower)):
        tower = make(size, device)
        if tower is None:
            print(f"{name}: not installed, skipped")
            continue
        variants[name] = lambda run=tower: run(image)
    with torch.no_grad():
        rows = in_turns(variants, rounds)
    show(f"image tower ViT-B/16, {size} px, {device}", rows, "ours, dense")
    return rows


def one_stage(size: int, sizes: list[int], rounds: int, device: str) -> dict[str, Any]:
    """Benchmark our one-stage detector against OWLv2-B/16 with cached classes, at one input size."""
    detector = build(OWL, device)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)

    def variants(k: int) -> dict[str, Callable[[], Any]]:
        detector.set_text_bank(generated_bank(k, 512).to(device))
        return {"ours": lambda: detector.predict(image, [sample_of(size)])}

    return peers.against_owlv2("one-stage ViT-B/16", variants, image, sizes, rounds)


def grounding_dino(size: int, sizes: list[int], rounds: int, device: str) -> dict[str, Any]:
    """Benchmark our two-stage detector against MM-Grounding-DINO-T in chunks of 40 names, at one input size."""
    detector = build(RCNN, device)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    out: dict[str, Any] = {}
    peer = peers.grounding_dino(size, device)
    if peer is None:
        print("MM-Grounding-DINO: transformers is not installed, skipped")
        return out
    for k in sizes:
        detector.set_text_bank(generated_bank(k, 512).to(device))
        variants = {
            "ours": lambda: detector.predict(image, [sample_of(size)]),
            "MM-Grounding-DINO-T, chunks of 40": lambda count=k: peer(image, count),
        }
        with torch.no_grad():
            out[str(k)] = in_turns(variants, rounds)
        show(f"two-stage ViT-B/16 and Grounding DINO, {size} px, {k} names, {device}", out[str(k)], "ours")
    return out
