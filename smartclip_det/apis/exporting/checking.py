"""Compare an exported file with PyTorch on images: largest differences, and detections one by one.

Shape letters: N detections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.utils.optional import optional

#: Allowed difference by precision of the file. Differences are relative to the largest value of an output where that is
#: above 1 (boxes in pixels, unnormalised vectors).
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2}
#: Allowed share of detections without a counterpart: rounding to fp16 changes which of two similar boxes NMS keeps.
UNMATCHED_SHARES = {"fp32": 0.0, "fp16": 0.02}

Arrays = dict[str, np.ndarray]
#: Maps inputs to outputs, both by name.
Runner = Callable[[Arrays], Arrays]


@dataclass
class Comparison:
    """Differences between a file and PyTorch over a set of images.

    Attributes:
        runtime: name of the runtime.
        tolerance: largest allowed difference.
        unmatched_share: allowed share of detections without a counterpart.
        largest: largest difference by output.
        images: number of images compared.
        detections: number of PyTorch detections.
        unmatched: detections of either side without a counterpart of the same label, box and score.
        at_the_cut: unmatched detections not counted above: their score is within the tolerance of the threshold, or of
            the lowest of a full result.
    """

    runtime: str
    tolerance: float
    unmatched_share: float = 0.0
    largest: dict[str, float] = field(default_factory=dict)
    images: int = 0
    detections: int = 0
    unmatched: int = 0
    at_the_cut: int = 0

    @property
    def passed(self) -> bool:
        """Whether all differences are within the tolerance and enough detections have a counterpart."""
        # Each missing counterpart may leave a detection alone on both sides.
        enough = self.unmatched <= 2 * self.unmatched_share * self.detections
        return self.images > 0 and enough and all(v <= self.tolerance for v in self.largest.values())

    def seen(self, name: str, value: float) -> None:
        """Record a difference; NaN counts as infinite."""
        self.largest[name] = max(self.largest.get(name, 0.0), value if np.isfinite(value) else np.inf)

    def lines(self) -> list[str]:
        """Summary for the terminal."""
        differences = ", ".join(f"{k} {v:.2e}" for k, v in self.largest.items())
        out = [f"{self.runtime} against PyTorch on {self.images} images: largest difference {differences}"]
        if self.detections or self.unmatched:
            cut = f" ({self.at_the_cut} more at the score threshold or the detection limit)" if self.at_the_cut else ""
            out.append(f"  {self.detections} detections after NMS, {self.unmatched} without a counterpart{cut}")
        return out


def onnx_runner(session: Any) -> Runner:
    """Runner of an onnxruntime session."""
    names = [o.name for o in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def openvino_runner(path: Path, threads: int = 0) -> Runner:
    """Runner of the file in OpenVINO, on the CPU in fp32.

    Raises:
        UserError: OpenVINO is not installed or cannot read the file.
    """
    openvino = optional("openvino", "openvino")
    options = {"INFERENCE_PRECISION_HINT": "f32", **({"INFERENCE_NUM_THREADS": threads} if threads else {})}
    try:
        model = openvino.Core().compile_model(str(path), "CPU", options)
    except Exception as error:
        raise UserError(f"OpenVINO cannot read {path} ({str(error).strip().splitlines()[-1]}).") from error
    names = [next(iter(o.names)) for o in model.outputs]

    def run(inputs: Arrays) -> Arrays:
        found = model(inputs)
        return {n: found[o] for n, o in zip(names, model.outputs, strict=True)}

    return run


def compare_values(comparison: Comparison, expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> None:
    """Add the differences of one image, value by value."""
    comparison.images += 1
    for name, values in expected.items():
        comparison.seen(name, _distance(values, found[name]))


def compare_detections(
    comparison: Comparison,
    expected: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    full: int,
    threshold: float = 0.0,
) -> None:
    """Add the differences of one image, detection by detection.

    Detections match if they have the same label, and the same box and score within the tolerance; their order is
    free. Detections with a score at the threshold, or the lowest of a full result, may differ: they are in one
    result and just outside of the other.

    Args:
        comparison: updated in place.
        expected: ``boxes [N, 4]``, ``scores [N]``, ``labels [N]`` of PyTorch.
        found: the same of the file.
        full: maximum number of detections per image.
        threshold: minimum score of a detection.
    """
    comparison.images += 1
    comparison.detections += len(expected["scores"])
    free = np.ones(len(found["scores"]), dtype=bool)
    largest = max(1.0, float(np.abs(expected["boxes"]).max(initial=0)))
    unmatched: list[float] = []
    for box, score, label in zip(expected["boxes"], expected["scores"], expected["labels"], strict=True):
        rows = np.flatnonzero(free & (found["labels"] == label))
        far = np.abs(found["boxes"][rows] - box).max(axis=1, initial=0) / largest
        apart = np.maximum(far, np.abs(found["scores"][rows] - score))
        if not len(rows) or not apart.min() <= max(comparison.tolerance, 1e-3):
            unmatched.append(float(score))
            continue
        best = int(apart.argmin())
        free[rows[best]] = False
        comparison.seen("boxes", float(far[best]))
        comparison.seen("scores", abs(float(found["scores"][rows[best]] - score)))
    unmatched += [float(s) for s in found["scores"][free]]
    lowest = [float(a["scores"].min()) for a in (expected, found) if len(a["scores"]) == full]
    cut = max([*lowest, threshold]) + comparison.tolerance
    comparison.at_the_cut += sum(s <= cut for s in unmatched)
    comparison.unmatched += sum(not s <= cut for s in unmatched)
    for name in ("boxes", "scores"):
        comparison.seen(name, 0.0)


def _distance(expected: np.ndarray, found: np.ndarray) -> float:
    if expected.shape != found.shape:
        return float("inf")
    return float(np.abs(found - expected).max(initial=0)) / max(1.0, float(np.abs(expected).max(initial=0)))


def check_images(paths: Sequence[Path], count: int = 4) -> tuple[list[Image.Image], str]:
    """Images to compare on and their description: files and folders, or toy scenes if none are given."""
    from smartclip_det.apis.inputs import find_images
    from smartclip_det.utils.images import open_rgb

    if paths:
        files, skipped = find_images(paths)
        print("\n".join(skipped), end="\n" if skipped else "")
        return [open_rgb(f) for f in files], f"{len(files)} images of {', '.join(map(str, paths))}"
    from smartclip_det.datasets.toy_world.scenes import ToyWorld

    world = ToyWorld()
    return [Image.fromarray(world.scene("val", n).image) for n in range(count)], f"{count} toy scenes"
