"""The training-free predictor on one picture: its stages by vocabulary size, batches, memory, and OWLv2 beside it."""

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
    in_turns,
    resident_mib,
    seconds_of,
    show,
)

#: Of torchvision, where its own cost is not what is measured.
SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"
#: Stages that no name takes part in, and all of them.
SAME = ("read", "boxes", "towers", "regions")
STAGES = (*SAME, "scoring", "drawing")
#: Share that the whole may grow by from the smallest to the largest vocabulary.
FREE_OF_NAMES = 0.05


def generated_picture(size: int, seed: int = 0) -> Image.Image:
    """A square picture with edges at several scales, for decoders and detectors to work on."""
    g = np.random.default_rng(seed)
    coarse = Image.fromarray(g.integers(0, 255, (size // 16, size // 16, 3), dtype=np.uint8))
    fine = g.integers(-20, 20, (size, size, 3))
    return Image.fromarray((np.asarray(coarse.resize((size, size))) + fine).clip(0, 255).astype(np.uint8))


def build(arch: str, size: int, device: str, source: TorchvisionBoxes) -> Predictor:
    """Towers with random weights, and a source of boxes."""
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
    """The stages of one picture from its file to a drawing, each by the predictor's own parts."""

    def __init__(self, predictor: Predictor, path: Path) -> None:
        self.predictor, self.path, self.rows = predictor, path, dict[str, list[dict[str, float]]]()

    def _stage(self, name: str, work: Callable[[], Any]) -> Any:
        kept: list[Any] = []
        with PeakMemory() as memory:
            seconds = seconds_of(lambda: kept.append(work()))
        self.rows.setdefault(name, []).append({"seconds": seconds, "peak_mib": memory.mib})
        return kept[0]

    @torch.no_grad()
    def run(self, banks: dict[int, Any]) -> None:
        """One round: what does not look at names once, then scoring and drawing for each number of them."""
        family: Any = self.predictor.family
        picture = self._stage("read", lambda: picture_of(self.path))
        (boxes,) = self._stage("boxes", lambda: family.find_boxes([picture], [None]))
        dense = self._stage("towers", lambda: family.maps([picture.image]))
        encoded = self._stage("regions", lambda: family.pooled(picture, boxes, dense[0]))
        for k, bank in banks.items():
            found = self._stage(f"scoring {k}", lambda b=bank: family.detect(encoded, b, 0.0, None))
            self._stage(f"drawing {k}", lambda f=found: f.plot(picture.image, limit=20))

    def median(self, name: str) -> dict[str, float]:
        """Of a stage over the rounds."""
        rows = self.rows[name]
        return {q: float(np.median([r[q] for r in rows])) for q in ("seconds", "peak_mib")}


def by_names(one: OnePicture, names: list[int], rounds: int, dim: int) -> dict[str, Any]:
    """Median seconds of each stage for each number of names; the growth of the whole."""
    banks = {k: generated_bank(k, dim).to(one.predictor.device) for k in names}
    one.run(banks)
    one.rows.clear()
    for _ in range(rounds):
        one.run(banks)
    print(f"ms (peak MiB added), medians of {rounds}")
    print("  names  " + "".join(f"{s:>17s}" for s in STAGES) + f"{'whole':>10s}")
    out: dict[str, Any] = {}
    for k in names:
        row = {s: one.median(s if s in SAME else f"{s} {k}") for s in STAGES}
        whole = sum(r["seconds"] for r in row.values())
        out[str(k)] = {"stages": row, "whole": whole}
        cells = "".join(f"{r['seconds'] * 1e3:9.1f} ({r['peak_mib']:5.0f})" for r in row.values())
        print(f"{k:7d}  {cells}{whole * 1e3:10.1f}")
    growth = out[str(max(names))]["whole"] / out[str(min(names))]["whole"] - 1
    told = "within" if growth <= FREE_OF_NAMES else "over"
    print(f"from {min(names)} to {max(names)} names the whole grows by {growth:.1%}: {told} {FREE_OF_NAMES:.0%}")
    return {**out, "growth": growth}


def beside_owlv2(predictor: Predictor, path: Path, size: int, names: list[int], rounds: int) -> dict[str, Any]:
    """Encoding and scoring against OWLv2-B/16 with cached classes, both from pixels in memory, in turns."""
    picture = picture_of(path)
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(predictor.device)
    family: Any = predictor.family
    (boxes,) = family.find_boxes([picture], [None])
    out: dict[str, Any] = {}
    for k in names:
        bank = generated_bank(k, predictor.encoder.config.embed_dim).to(predictor.device)

        def ours(b: Any = bank) -> Any:
            return predictor.detect(b, image=predictor.encode_image(picture))

        def ours_without_boxes(b: Any = bank) -> Any:
            maps = family.maps([picture.image])
            return predictor.detect(b, image=family.pooled(picture, boxes, maps[0]))

        variants: dict[str, Callable[[], Any]] = {"ours": ours, "ours, boxes known": ours_without_boxes}
        peer = peers.owlv2(size, k, str(predictor.device))
        if peer is None:
            print("OWLv2: transformers is not installed, left out")
        else:
            variants["OWLv2-B/16, cached classes"] = lambda run=peer: run(pixels)
        with torch.no_grad():
            out[str(k)] = in_turns(variants, rounds)
        show(f"training-free ViT-B/16 beside OWLv2, {size} px, {k} names, {predictor.device}", out[str(k)], "ours")
    return out


def batches(predictor: Predictor, folder: Path, size: int, count: int = 8) -> dict[str, Any]:
    """A batch of ``count`` pictures against as many single ones, once each; answers must be the same."""
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
        f"\n{count} pictures, {size} px: {one:.2f} s one by one, {many:.2f} s as a batch ({many / one:.2f} of it); "
        f"scores differ by {apart:.1g} at most"
    )
    return {**seconds, "largest_difference_of_scores": apart}


def memory(predictor: Predictor, path: Path, count: int, every: int = 20) -> dict[str, Any]:
    """Resident MiB of the process along a stream of pictures: it must not grow with their number."""
    bank = generated_bank(80, predictor.encoder.config.embed_dim).to(predictor.device)

    def stream() -> Iterator[Path]:
        for _ in range(count):
            yield path

    held = []
    for n, _ in enumerate(predictor.detect_images(stream(), bank, batch_size=2)):
        if n % every == every - 1:
            held.append(resident_mib())
    # The first pictures fill caches of the allocator.
    half = held[len(held) // 2 :]
    growth = max(half) - held[len(held) // 2 - 1] if len(held) > 1 else 0.0
    print(
        f"memory over {count} pictures: {held[0]:.0f} MiB after {every}, {held[-1]:.0f} MiB at the end; "
        f"growth over the second half {growth:.0f} MiB"
    )
    return {"resident_mib": held, "every": every, "growth_second_half_mib": growth}


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
    """Some of the parts, or all of them, for one input side."""
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
            out["owlv2"] = beside_owlv2(predictor, path, size, sorted({min(names), max(names)}), max(1, rounds // 2))
        if "batches" in parts:
            out["batches"] = batches(predictor, Path(folder), size)
        if "memory" in parts:
            # Small models: memory is that of the loop, and thousands of pictures are minutes.
            proposals = TorchvisionBoxes(SMALL, weights=None, max_boxes=max_boxes, size=64)
            out["memory"] = memory(build("SmartCLIP-tiny", 192, device, proposals), path, pictures)
    return out
