"""Benchmark full-size evaluation on generated results: seconds including loading, peak memory, equality of metrics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from smartclip_det.core.errors import UserError


def generate(folder: Path, kind: str, images: int, detections: int, classes: int, seed: int = 0) -> tuple[Path, Path]:
    """Generate annotations with about 7 (COCO) or 12 (LVIS) boxes per image, and detections of which a third match."""
    rng = np.random.default_rng(seed)
    per_image = 7 if kind == "coco" else 12
    names = [{"id": k + 1, "name": f"class {k}"} for k in range(classes)]
    if kind == "lvis":
        names = [{**c, "frequency": "rcf"[min(2, k * 3 // classes)]} for k, c in enumerate(names)]
    infos: list[dict[str, Any]] = []
    truths: list[dict[str, Any]] = []
    ann, pred = folder / f"{kind}_{images}.json", folder / f"{kind}_{images}_{detections}.json"
    with pred.open("w", encoding="utf-8") as handle:
        handle.write("[")
        for i in range(1, images + 1):
            count = int(rng.integers(1, 2 * per_image))
            boxes = np.c_[rng.uniform(0, 500, (count, 2)), rng.uniform(8, 140, (count, 2))]
            labels = rng.integers(1, classes + 1, count)
            info: dict[str, Any] = {"id": i, "width": 640, "height": 640}
            if kind == "lvis":
                absent = [int(c) for c in rng.choice(classes, 8, replace=False) + 1 if c not in labels]
                info.update(neg_category_ids=absent, not_exhaustive_category_ids=[])
            infos.append(info)
            for c, b in zip(labels.tolist(), boxes.tolist(), strict=True):
                truths.append(
                    {
                        "id": len(truths) + 1,
                        "image_id": i,
                        "category_id": c,
                        "bbox": b,
                        "iscrowd": 0,
                        "area": b[2] * b[3],
                        "segmentation": [],
                    }
                )
            source = rng.integers(0, count, detections)
            near = boxes[source] + rng.normal(0, 6, (detections, 4))
            near[:, 2:] = np.maximum(near[:, 2:], 1)
            guessed = np.where(rng.random(detections) < 0.33, labels[source], rng.integers(1, classes + 1, detections))
            scores = rng.random(detections)
            rows = (
                f'{{"image_id": {i}, "category_id": {c}, "bbox": [{b[0]:.2f}, {b[1]:.2f}, {b[2]:.2f}, {b[3]:.2f}], '
                f'"score": {s:.6f}}}'
                for c, b, s in zip(guessed, near, scores, strict=True)
            )
            handle.write(("" if i == 1 else ",") + ",".join(rows))
        handle.write("]")
    ann.write_text(json.dumps({"images": infos, "annotations": truths, "categories": names}), encoding="utf-8")
    return ann, pred


def score(kind: str, ann: Path, pred: Path, backend: str) -> dict[str, Any]:
    """Run the tool in a subprocess: seconds and peak memory of the whole process, and its metrics."""
    out = pred.with_suffix(f".{backend}.metrics.json")
    command = [
        sys.executable,
        "tools/evaluate.py",
        kind,
        "--ann",
        str(ann),
        "--pred",
        str(pred),
        "--backend",
        backend,
        "--out",
        str(out),
    ]
    begin = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        raise UserError(f"tools/evaluate.py failed: {' '.join(command)}")
    metrics = json.loads(out.read_text(encoding="utf-8"))["metrics"]
    return {"seconds": seconds, "peak_mib": usage.ru_maxrss / 1024, "metrics": metrics}


def run(full: bool) -> dict[str, Any]:
    """Benchmark full-size COCO and LVIS at 2,000 images with both backends; ``full`` adds full-size LVIS (fast)."""
    cases = [
        ("coco", 5000, 100, 80, "fast"),
        ("coco", 5000, 100, 80, "reference"),
        ("lvis", 2000, 300, 1203, "fast"),
        ("lvis", 2000, 300, 1203, "reference"),
    ]
    if full:
        cases.append(("lvis", 19809, 300, 1203, "fast"))
    out: dict[str, Any] = {}
    print("\nevaluation including loading\n  protocol  images  detections  backend     seconds    peak MiB")
    with tempfile.TemporaryDirectory() as folder:
        files: dict[tuple[str, int], tuple[Path, Path]] = {}
        for kind, images, detections, classes, backend in cases:
            if (kind, images) not in files:
                files[kind, images] = generate(Path(folder), kind, images, detections, classes)
            result = score(kind, *files[kind, images], backend)
            out[f"{kind} {images} x {detections} {backend}"] = result
            cells = [f"  {kind:8s}", f"{images:6d}", f"{detections:10d}", f"{backend:9s}", f"{result['seconds']:8.1f}"]
            print("  ".join([*cells, f"{result['peak_mib']:9.0f}"]), flush=True)
    for kind, images, detections in (("coco", 5000, 100), ("lvis", 2000, 300)):
        fast, slow = (out[f"{kind} {images} x {detections} {b}"] for b in ("fast", "reference"))
        worst = max(abs(fast["metrics"][k] - slow["metrics"][k]) for k in slow["metrics"])
        print(f"{kind}: fast is {slow['seconds'] / fast['seconds']:.1f} x as fast; largest difference {worst:.1e}")
        out[f"{kind} ratio"] = {"reference_to_fast": slow["seconds"] / fast["seconds"], "largest_difference": worst}
    return out
