"""An exported file against PyTorch, on pictures: largest differences, and detections one by one.

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

#: Largest difference that is allowed, by precision of the file: of a value, relative to the largest value of its output
#: where that is above 1 (boxes in pixels, vectors that are not normalised).
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2}

Arrays = dict[str, np.ndarray]
#: Runs a file: inputs by name to outputs by name.
Runner = Callable[[Arrays], Arrays]


@dataclass
class Comparison:
    """Differences between a file and PyTorch over pictures.

    Attributes:
        runtime: what ran the file.
        tolerance: largest difference that is allowed.
        largest: by output.
        images: pictures compared.
        detections: of PyTorch, of which each must have its partner.
        unmatched: detections of either side without a partner of the same label and box.
        at_the_cut: those without one whose score is within the tolerance of the lowest that was answered.
    """

    runtime: str
    tolerance: float
    largest: dict[str, float] = field(default_factory=dict)
    images: int = 0
    detections: int = 0
    unmatched: int = 0
    at_the_cut: int = 0

    @property
    def passed(self) -> bool:
        """Whether nothing differs by more than the tolerance, and every detection has its partner."""
        return self.images > 0 and not self.unmatched and all(v <= self.tolerance for v in self.largest.values())

    def seen(self, name: str, value: float) -> None:
        """Note a difference; one that is no number counts as infinite."""
        self.largest[name] = max(self.largest.get(name, 0.0), value if np.isfinite(value) else np.inf)

    def lines(self) -> list[str]:
        """For people."""
        told = ", ".join(f"{k} {v:.2e}" for k, v in self.largest.items())
        out = [f"{self.runtime} against PyTorch on {self.images} pictures: largest difference {told}"]
        if self.detections or self.unmatched:
            cut = f" ({self.at_the_cut} more at the cut, where scores are equal)" if self.at_the_cut else ""
            out.append(f"  {self.detections} detections after NMS, {self.unmatched} without a partner{cut}")
        return out


def onnx_runner(session: Any) -> Runner:
    """Of an onnxruntime session."""
    names = [o.name for o in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def openvino_runner(path: Path, threads: int = 0) -> Runner:
    """Of the same file in OpenVINO, on the CPU in fp32.

    Raises:
        UserError: where OpenVINO is not installed, or cannot read the file.
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


def compare_values(told: Comparison, expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> None:
    """Add the differences of one picture's outputs, value by value."""
    told.images += 1
    for name, values in expected.items():
        told.seen(name, _distance(values, found[name]))


def compare_detections(
    told: Comparison, expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], full: int
) -> None:
    """Add the differences of one picture's detections.

    Each detection has a partner of the same label whose box and score are the same within the tolerance. Two
    detections of equal score may change places; where an answer is full, they may also change places with one that
    is left out.

    Args:
        told: added to.
        expected: ``boxes [N, 4]``, ``scores [N]``, ``labels [N]`` of PyTorch.
        found: the same of the file.
        full: most detections of a picture.
    """
    told.images += 1
    told.detections += len(expected["scores"])
    free = np.ones(len(found["scores"]), dtype=bool)
    largest = max(1.0, float(np.abs(expected["boxes"]).max(initial=0)))
    lonely: list[float] = []
    for box, score, label in zip(expected["boxes"], expected["scores"], expected["labels"], strict=True):
        rows = np.flatnonzero(free & (found["labels"] == label))
        far = np.abs(found["boxes"][rows] - box).max(axis=1, initial=0) / largest
        apart = np.maximum(far, np.abs(found["scores"][rows] - score))
        if not len(rows) or not apart.min() <= max(10 * told.tolerance, 1e-3):
            lonely.append(float(score))
            continue
        best = int(apart.argmin())
        free[rows[best]] = False
        told.seen("boxes", float(far[best]))
        told.seen("scores", abs(float(found["scores"][rows[best]] - score)))
    lonely += [float(s) for s in found["scores"][free]]
    lowest = [float(a["scores"].min()) for a in (expected, found) if len(a["scores"]) == full]
    cut = max(lowest, default=-1.0) + told.tolerance
    told.at_the_cut += sum(s <= cut for s in lonely)
    told.unmatched += sum(s > cut for s in lonely)
    for name in ("boxes", "scores"):
        told.seen(name, 0.0)


def _distance(expected: np.ndarray, found: np.ndarray) -> float:
    if expected.shape != found.shape:
        return float("inf")
    return float(np.abs(found - expected).max(initial=0)) / max(1.0, float(np.abs(expected).max(initial=0)))


def check_images(paths: Sequence[Path], count: int = 4) -> tuple[list[Image.Image], str]:
    """Pictures to compare on, and what they are: files and folders, or drawn scenes where none are given."""
    from smartclip_det.apis.inputs import find_images
    from smartclip_det.utils.images import open_rgb

    if paths:
        files, told = find_images(paths)
        print("\n".join(told), end="\n" if told else "")
        return [open_rgb(f) for f in files], f"{len(files)} pictures of {', '.join(map(str, paths))}"
    from smartclip_det.datasets.toy_world.scenes import ToyWorld

    world = ToyWorld()
    return [Image.fromarray(world.scene("val", n).image) for n in range(count)], f"{count} drawn scenes"
