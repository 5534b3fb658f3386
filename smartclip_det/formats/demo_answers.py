"""Boxes written by ``smartclip-det demo``: one JSON per image, ``{"image", "detections": [{"box", ...}]}``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError, nearest
from smartclip_det.formats.annotations import GroundTruth
from smartclip_det.formats.json_files import read_json


def is_demo_answer(path: str | Path) -> bool:
    """Whether a path is a JSON file written by the demo, or a folder with such files."""
    path = Path(path)
    if path.is_dir():
        return any(is_demo_answer(p) for p in path.glob("*.json"))
    if path.suffix != ".json" or not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as handle:
        if not handle.read(64).lstrip().startswith("{"):
            return False
    return _is_answer(read_json(path, "file of boxes"))


def _is_answer(data: Any) -> bool:
    return isinstance(data, Mapping) and "image" in data and isinstance(data.get("detections"), list)


def read_demo_answers(path: str | Path, truth: GroundTruth) -> list[dict[str, Any]]:
    """Convert detections of the demo to COCO results (``bbox`` xywh pixels) for an annotation file.

    Args:
        path: one JSON file, or a folder.
        truth: annotations; images are matched by file name, classes by name (-1 for unknown names).

    Raises:
        UserError: for an image that is missing or ambiguous in the annotations, or a detection without box and score.
    """
    path = Path(path)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    category = {n: k for k, n in truth.categories.items()}
    by_name: dict[str, list[Any]] = {}
    for info in truth.data["images"]:
        name = Path(str(info.get("file_name") or info.get("coco_url") or "")).name
        by_name.setdefault(name, []).append(info["id"])
    out = []
    for file in files:
        data = read_json(file, "file of boxes")
        if not _is_answer(data):
            continue
        name = Path(str(data["image"])).name
        ids = by_name.get(name, [])
        if len(ids) != 1:
            problem = f"{len(ids)} images of that name" if ids else "no such image"
            near = "" if ids else f" Nearest: {', '.join(nearest(name, by_name)) or 'none'}."
            raise UserError(f"{file} is of {name}; {truth.path} has {problem}.{near}")
        for n, detection in enumerate(data["detections"]):
            box = detection.get("box") if isinstance(detection, Mapping) else None
            if not isinstance(box, list) or len(box) != 4 or "score" not in detection:
                raise UserError(
                    f"Detection {n} of {file} needs a box [x1, y1, x2, y2] and a score; it is {detection!r}."
                )
            x1, y1, x2, y2 = box
            out.append(
                {
                    "image_id": ids[0],
                    "category_id": category.get(str(detection.get("name")), -1),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": detection["score"],
                }
            )
    return out
