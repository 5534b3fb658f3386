"""Benchmark the training-free predictor on one image: stages by vocabulary size, batching, memory, and OWLv2."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from smartclip_det.apis.encoding import picture_of
from smartclip_det.apis.predictor import Predictor
from smartclip_det.core.words import PREDICT_PARTS
from smartclip_det.models.boxes import TorchvisionBoxes
from smartclip_det.models.towers import SmartCLIP
from smartclip_det.studies.benchmarks import peers
from smartclip_det.studies.benchmarks.measuring import (
    PeakMemory,
    generated_bank,
    resident_mib,
    seconds_of,
)

#: A small torchvision detector, for runs where its own cost is not of interest.
SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"
#: Stages that do not depend on the class names, and all stages.
SAME = ("read", "boxes", "towers", "regions")
STAGES = (*SAME, "scoring", "drawing")
#: Allowed growth of the total time from the smallest to the largest vocabulary.
FREE_OF_NAMES = 0.05


def generated_picture(size: int, seed: int = 0) -> Image.Image:
    """Generate a square image with edges at several scales, as realistic input for decoders and detectors."""
    g = np.random.default_rng(seed)
    coarse = Image.fromarray(g.integers(0, 255, (size // 16, size // 16, 3), dtype=np.uint8))
    fine = g.integers(-20, 20, (size, size, 3))
    return Image.fromarray((np.asarray(coarse.resize((size, size))) + fine).clip(0, 255).astype(np.uint8))


def build(arch: str, size: int, device: str, source: TorchvisionBoxes) -> Predictor:
    """Build a predictor of towers with random weights and a box source."""
    return Predictor.from_pretrained(
        SmartCLIP.from_arch(arch),
        boxes=source,
        dense_size=size,
        max_boxes=source.max_boxes,
        device=device,
        use_cache=False,
        parser="rules",
    )


class OnePicture:
    """Time the predictor's stages on one image, from file to drawing."""

    def __init__(self, predictor: Predictor, path: Path) -> None:
        self.predictor, self.path, self.rows = predictor, path, dict[str, list[dict[str, float]]]()

    def _stage(self, name: str, work: Callable[[], Any]) -> Any:
        results: list[Any] = []
        with PeakMemory() as memory:
            seconds = seconds_of(lambda: results.append(work()))
        self.rows.setdefault(name, []).append({"seconds": seconds, "peak_mib": memory.mib})
        return results[0]

    @torch.no_grad()
    def run(self, banks: dict[int, Any]) -> None:
        """Run one round: name-independent stages once, then scoring and drawing per vocabulary size."""
        family: Any = self.predictor.family
        picture = self._stage("read", lambda: picture_of(self.path))
        (boxes,) = self._stage("boxes", lambda: family.find_boxes([picture], [None]))
        dense = self._stage("towers", lambda: family.maps([picture.image]))
        encoded = self._stage("regions", lambda: family.pooled(picture, boxes, dense[0]))
        for k, bank in banks.items():
            detections = self._stage(f"scoring {k}", lambda b=bank: family.detect(encoded, b, 0.0, None))
            self._stage(f"drawing {k}", lambda f=detections: f.plot(picture.image, limit=20))

    def median(self, name: str) -> dict[str, float]:
        """Median over the rounds of one stage."""
        rows = self.rows[name]
        return {q: float(np.median([r[q] for r in rows])) for q in ("seconds", "peak_mib")}


def by_names(one: OnePicture, names: list[int], rounds: int, dim: int) -> dict[str, Any]:
    """Measure median seconds of each stage per vocabulary size, and the growth of the total."""
    banks = {k: generated_bank(k, dim).to(one.predictor.device) for k in names}
    one.run(banks)
    one.rows.clear()
    for _ in range(rounds):
        one.run(banks)
    print(f"median ms of {rounds} rounds (peak MiB added)")
    print("  names  " + "".join(f"{s:>17s}" for s in STAGES) + f"{'whole':>10s}")
    out: dict[str, Any] = {}
    for k in names:
        row = {s: one.median(s if s in SAME else f"{s} {k}") for s in STAGES}
        whole = sum(r["seconds"] for r in row.values())
        out[str(k)] = {"stages": row, "whole": whole}
        cells = "".join(f"{r['seconds'] * 1e3:9.1f} ({r['peak_mib']:5.0f})" for r in row.values())
        print(f"{k:7d}  {cells}{whole * 1e3:10.1f}")
    growth = out[str(max(names))]["whole"] / out[str(min(names))]["whole"] - 1
    verdict = "within" if growth <= FREE_OF_NAMES else "over"
    print(f"from {min(names)} to {max(names)} names the total grows by {growth:.1%}: {verdict} {FREE_OF_NAMES:.0%}")
    return {**out, "growth": growth}


def against_owlv2(predictor: Predictor, path: Path, size: int, names: list[int], rounds: int) -> dict[str, Any]:
    """Benchmark encoding and scoring against OWLv2-B/16 with cached classes, interleaved, from pixels in memory."""
    picture = picture_of(path)
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(predictor.device)
    family: Any = predictor.family
    (boxes,) = family.find_boxes([picture], [None])

    def variants(k: int) -> dict[str, Callable[[], Any]]:
        bank = generated_bank(k, predictor.encoder.config.embed_dim).to(predictor.device)

        def ours_without_boxes() -> Any:
            maps = family.maps([picture.image])
            return predictor.detect(bank, image=family.pooled(picture, boxes, maps[0]))

        return {
            "ours": lambda: predictor.detect(bank, image=predictor.encode_image(picture)),
            "ours, boxes known": ours_without_boxes,
        }

    return peers.against_owlv2("training-free ViT-B/16", variants, pixels, names, rounds)


def batches(predictor: Predictor, folder: Path, size: int, count: int = 8) -> dict[str, Any]:
    """Compare one batch of ``count`` images with single images, once each; the scores must agree."""
    paths = [folder / f"{n}.jpg" for n in range(count)]
    for n, path in enumerate(paths):
        generated_picture(size, n).save(path)
    bank = generated_bank(80, predictor.encoder.config.embed_dim).to(predictor.device)
    answers: dict[int, list[Any]] = {}

    def run(batch_size: int) -> None:
        answers[batch_size] = list(predictor.detect_images(paths, bank, batch_size=batch_size))

    seconds = {f"batches of {n}": seconds_of(lambda n=n: run(n)) for n in (1, count)}
    apart = max(float(np.abs(a.scores - b.scores).max()) for a, b in zip(answers[1], answers[count], strict=True))
    one, many = seconds.values()
    print(
        f"\n{count} images, {size} px: {one:.2f} s one by one, {many:.2f} s as a batch ({many / one:.2f} of it); "
        f"scores differ by at most {apart:.1g}"
    )
    return {**seconds, "largest_difference_of_scores": apart}


def memory(predictor: Predictor, path: Path, count: int, every: int = 20) -> dict[str, Any]:
    """Track resident MiB of the process over a stream of images; it must not grow with their number."""
    bank = generated_bank(80, predictor.encoder.config.embed_dim).to(predictor.device)

    def stream() -> Iterator[Path]:
        for _ in range(count):
            yield path

    resident = []
    for n, _ in enumerate(predictor.detect_images(stream(), bank, batch_size=2)):
        if n % every == every - 1:
            resident.append(resident_mib())
    # The allocator's caches fill up during the first images, so only the second half is compared.
    half = resident[len(resident) // 2 :]
    growth = max(half) - resident[len(resident) // 2 - 1] if len(resident) > 1 else 0.0
    print(
        f"memory over {count} images: {resident[0]:.0f} MiB after {every}, {resident[-1]:.0f} MiB at the end; "
        f"growth over the second half {growth:.0f} MiB"
    )
    return {"resident_mib": resident, "every": every, "growth_second_half_mib": growth}


def run(
    arch: str,
    size: int,
    names: list[int],
    rounds: int,
    device: str,
    max_boxes: int,
    pictures: int,
    parts: Sequence[str] = PREDICT_PARTS,
) -> dict[str, Any]:
    """Run the selected parts for one input size."""
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.jpg"
        generated_picture(size).save(path, quality=90)
        if set(parts) - {"memory"}:
            predictor = build(arch, size, device, TorchvisionBoxes(weights=None, max_boxes=max_boxes))
            dim = predictor.encoder.config.embed_dim
            print(f"\n{arch} at {size} px, {max_boxes} boxes of torchvision's RPN, {device}")
        if "stages" in parts:
            out["stages"] = by_names(OnePicture(predictor, path), names, rounds, dim)
        if "owlv2" in parts:
            out["owlv2"] = against_owlv2(predictor, path, size, sorted({min(names), max(names)}), max(1, rounds // 2))
        if "batches" in parts:
            out["batches"] = batches(predictor, Path(folder), size)
        if "memory" in parts:
            # Small models: only the loop's memory matters, and thousands of images would take long.
            proposals = TorchvisionBoxes(SMALL, weights=None, max_boxes=max_boxes, size=64)
            out["memory"] = memory(build("SmartCLIP-tiny", 192, device, proposals), path, pictures)
    return out
