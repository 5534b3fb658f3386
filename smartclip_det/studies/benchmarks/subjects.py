"""Options and entry point of all benchmarks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from smartclip_det.core.words import PREDICT_PARTS
from smartclip_det.protocols.stamp import protocol_stamp, write_results
from smartclip_det.utils.devices import resolve_device


@dataclass(frozen=True)
class BenchOptions:
    """Options of the benchmarks.

    Attributes:
        subject: what to benchmark.
        names: vocabulary sizes.
        sizes: input sides in pixels.
        rounds: measured runs of each variant, in turns.
        max_gib: similarity: largest tensor of the broadcast form.
        arch: vocabulary, alignment, predict: towers with random weights.
        batch: alignment, roofline: pairs of a step; None: 16, for ``host`` and roofline 256.
        host: alignment: measure the host's work before the first kernel, and nothing else.
        head: alignment: batch of the head alone.
        dim: alignment: D of the head alone.
        chunks: alignment: chunks of captions of similar length.
        bf16: alignment: autocast to bfloat16.
        images: alignment: folder of images, to benchmark the data loader.
        captions: alignment: captions of ``images``; None: caption files in that folder.
        workers: alignment: data loader workers.
        sentences: ground: sentences per image.
        proposals: ground: boxes per image; predict: the maximum is the number of boxes per image.
        pictures: predict: images in the stream used to track memory.
        parts: predict: parts to benchmark.
        full: evaluation: also LVIS with 19,809 images.
        device: see :func:`resolve_device`.
        out: JSON output; None: ``work_dirs/benchmark_SUBJECT.json``.
    """

    subject: str
    names: Sequence[int] = (1, 80, 1203, 20000)
    sizes: Sequence[int] = (640,)
    rounds: int = 5
    max_gib: float = 4.0
    arch: str | None = None
    batch: int | None = None
    host: bool = False
    head: int = 512
    dim: int = 512
    chunks: int = 4
    bf16: bool = False
    images: Path | None = None
    captions: Path | None = None
    workers: int = 2
    sentences: Sequence[int] = (1, 10, 100, 500)
    proposals: Sequence[int] = (10, 100)
    pictures: int = 200
    parts: Sequence[str] = PREDICT_PARTS
    full: bool = False
    device: str = "auto"
    out: Path | None = None


def measure(task: BenchOptions) -> Path:
    """Run one benchmark.

    Returns:
        Path of the written JSON.
    """
    task = replace(task, device=str(resolve_device(task.device)))
    results = _results(task)
    stamp = protocol_stamp(
        f"benchmark {task.subject}",
        device=task.device,
        threads=torch.get_num_threads(),
        cores=os.cpu_count(),
        rounds=task.rounds,
    )
    out = task.out or Path(f"work_dirs/benchmark_{task.subject}.json")
    return write_results(out, stamp, results)


def _results(task: BenchOptions) -> dict[str, Any]:
    if task.subject == "similarity":
        from smartclip_det.studies.benchmarks import similarity

        return similarity.run(task.rounds, task.max_gib, task.device)
    if task.subject == "vocabulary":
        from smartclip_det.studies.benchmarks import vocabulary

        return vocabulary.run(task.names, task.arch or "SmartCLIP-tiny")
    if task.subject == "roofline":
        from smartclip_det.studies.benchmarks import roofline

        return roofline.run(task.arch or "SmartCLIP-B-16", task.batch or 256, 8)
    if task.subject == "alignment" and task.host:
        from smartclip_det.studies.benchmarks import host

        return host.run(task.batch or 256, max(task.rounds, 20), task.device)
    if task.subject == "alignment":
        from smartclip_det.studies.benchmarks import alignment

        return alignment.run(replace(task, arch=task.arch or "SmartCLIP-B-16", batch=task.batch or 16))
    if task.subject == "ground":
        from smartclip_det.studies.benchmarks import ground

        return ground.run(task)
    if task.subject == "predict":
        from smartclip_det.studies.benchmarks import predict

        return {
            str(size): predict.run(
                task.arch or "SmartCLIP-B-16",
                size,
                list(task.names),
                task.rounds,
                task.device,
                max(task.proposals),
                task.pictures,
                task.parts,
            )
            for size in task.sizes
        }
    if task.subject == "evaluation":
        from smartclip_det.studies.benchmarks import evaluation

        return evaluation.run(task.full)
    from smartclip_det.studies.benchmarks import detect

    work = {
        "towers": lambda s: detect.towers(s, task.rounds, task.device),
        "train": lambda s: detect.training(s, task.rounds, task.device),
        "detect": lambda s: detect.by_vocabulary(s, task.names, task.rounds, task.device),
        "one-stage": lambda s: detect.one_stage(s, task.names, task.rounds, task.device),
        "grounding-dino": lambda s: detect.grounding_dino(s, task.names, task.rounds, task.device),
    }
    return {str(size): work[task.subject](size) for size in task.sizes}
