"""The training-free predictor on one picture: its stages by vocabulary size, batches, memory, and OWLv2 beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from smartclip_det.apis.encoding import picture_of
from smartclip_det.apis.predictor import Predictor
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

STAGES = ("read", "boxes", "towers", "regions", "scoring", "drawing")
#: Share that the whole may grow by from the smallest to the largest vocabulary.
FREE_OF_NAMES = 0.05


def generated_picture(size: int, seed: int = 0) -> Image.Image:
    """A square picture with edges at several scales, for decoders and detectors to work on."""
    g = np.random.default_rng(seed)
    coarse = Image.fromarray(g.integers(0, 255, (size // 16, size // 16, 3), dtype=np.uint8))
    fine = g.integers(-20, 20, (size, size, 3))
    return Image.fromarray((np.asarray(coarse.resize((size, size))) + fine).clip(0, 255).astype(np.uint8))


def build(arch: str, size: int, device: str, max_boxes: int) -> Predictor:
    """Towers and proposals with random weights."""
    towers = SmartCLIP.from_arch(arch)
    return Predictor.from_pretrained(
        towers, boxes=TorchvisionBoxes(weights=None, max_boxes=max_boxes), dense_size=size, max_boxes=max_boxes,
        device=device, use_cache=False, parser="rules",
    )  # fmt: skip


class OnePicture:
    """The stages of one picture from its file to a drawing, each by the predictor's own parts."""

    def __init__(self, predictor: Predictor, path: Path) -> None:
        self.predictor, self.path = predictor, path
        self.bank: Any = None

    @torch.no_grad()
    def run(self, bank: Any) -> dict[str, dict[str, float]]:
        """Seconds and peak MiB of each stage."""
        family: Any = self.predictor.family
        rows: dict[str, dict[str, float]] = {}

        def stage(name: str, work: Callable[[], Any]) -> Any:
            kept: list[Any] = []
            with PeakMemory() as memory:
                seconds = seconds_of(lambda: kept.append(work()))
            rows[name] = {"seconds": seconds, "peak_mib": memory.mib}
            return kept[0]

        picture = stage("read", lambda: picture_of(self.path))
        (boxes,) = stage("boxes", lambda: family.find([picture], [None]))
        dense = stage("towers", lambda: family.maps([picture.image]))
        encoded = stage("regions", lambda: family.pooled(picture, boxes, dense[0]))
        found = stage("scoring", lambda: family.detect(encoded, bank, 0.0, None))
        stage("drawing", lambda: found.plot(picture.image, limit=20))
        return rows


def by_names(one: OnePicture, names: list[int], rounds: int, dim: int) -> dict[str, Any]:
    """Median seconds of each stage for each number of names, in turns; the growth of the whole."""
    banks = {k: generated_bank(k, dim).to(one.predictor.device) for k in names}
    one.run(banks[names[0]])
    runs: dict[int, list[dict[str, dict[str, float]]]] = {k: [] for k in names}
    for _ in range(rounds):
        for k in names:
            runs[k].append(one.run(banks[k]))
    print(
        "  names  "
        + "".join(f"{s:>17s}" for s in STAGES)
        + f"{'whole':>10s}   ms (peak MiB added), medians of {rounds}"
    )
    out: dict[str, Any] = {}
    # What does not look at names is the same work for all of them: its median is over all runs.
    same = [s for s in STAGES if s not in ("scoring", "drawing")]
    base = sum(_median([r[s]["seconds"] for k in names for r in runs[k]]) for s in same)
    for k in names:
        row = {s: {q: _median([r[s][q] for r in runs[k]]) for q in ("seconds", "peak_mib")} for s in STAGES}
        whole = base + row["scoring"]["seconds"] + row["drawing"]["seconds"]
        out[str(k)] = {"stages": row, "whole": whole}
        cells = "".join(f"{row[s]['seconds'] * 1e3:9.1f} ({row[s]['peak_mib']:5.0f})" for s in STAGES)
        print(f"{k:7d}  {cells}{whole * 1e3:10.1f}")
    growth = out[str(max(names))]["whole"] / out[str(min(names))]["whole"] - 1
    out["growth"] = growth
    told = "within" if growth <= FREE_OF_NAMES else "over"
    print(f"from {min(names)} to {max(names)} names the whole grows by {growth:.1%}: {told} {FREE_OF_NAMES:.0%}")
    return out


def _median(values: list[float]) -> float:
    return float(np.median(values))


def beside_owlv2(predictor: Predictor, path: Path, size: int, names: list[int], rounds: int) -> dict[str, Any]:
    """Encoding and scoring against OWLv2-B/16 with cached classes, both from pixels in memory, in turns."""
    picture = picture_of(path)
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(predictor.device)
    family: Any = predictor.family
    (boxes,) = family.find([picture], [None])
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


def batches(predictor: Predictor, folder: Path, size: int, rounds: int, count: int = 8) -> dict[str, Any]:
    """A batch of ``count`` pictures against as many single ones; answers must be the same."""
    paths = [folder / f"{n}.jpg" for n in range(count)]
    for n, path in enumerate(paths):
        generated_picture(size, n).save(path)
    bank = generated_bank(80, predictor.encoder.config.embed_dim).to(predictor.device)

    def run(batch_size: int) -> list[Any]:
        return list(predictor.detect_images(paths, bank, batch_size=batch_size))

    for a, b in zip(run(1), run(count), strict=True):
        if not np.allclose(a.scores, b.scores, atol=1e-4):
            print("note: scores of the batch differ from those of single pictures")
    rows = in_turns({f"{count} singles": lambda: run(1), f"a batch of {count}": lambda: run(count)}, rounds)
    show(f"{count} pictures, {size} px, {predictor.device}", rows, f"{count} singles")
    return rows


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
    print(f"memory over {count} pictures: {held[0]:.0f} MiB after {every}, {held[-1]:.0f} MiB at the end; "
          f"growth over the second half {growth:.0f} MiB")  # fmt: skip
    return {"resident_mib": held, "every": every, "growth_second_half_mib": growth}


def run(
    arch: str, size: int, names: list[int], rounds: int, device: str, max_boxes: int, pictures: int
) -> dict[str, Any]:
    """All of them for one input side."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.jpg"
        generated_picture(size).save(path, quality=90)
        predictor = build(arch, size, device, max_boxes)
        dim = predictor.encoder.config.embed_dim
        print(f"\n{arch} at {size} px, {max_boxes} boxes of torchvision's RPN, {device}")
        small = build("SmartCLIP-tiny", 192, device, max_boxes)
        out: dict[str, Any] = {"stages": by_names(OnePicture(predictor, path), names, rounds, dim)}
        out["owlv2"] = beside_owlv2(predictor, path, size, [min(names), max(names)], rounds)
        out["batches"] = batches(predictor, Path(folder), size, max(1, rounds // 2))
        # Small towers: memory is that of the loop, and thousands of pictures are minutes.
        out["memory"] = memory(small, path, pictures)
        return out
