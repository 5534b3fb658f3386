"""FG-OVD (arXiv 2311.17518): LVIS-like annotations with a caption and hard negatives for each object."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.formats.expressions.record import Expression, of_annotations
from smartclip_det.formats.json_files import read_json
from smartclip_det.formats.json_lines import read_json_lines


def load_fgovd(path: str | Path) -> dict[str, Any]:
    """Read FG-OVD annotations, with ``category_id`` and ``neg_category_ids`` per object.

    Raises:
        UserError: for a file in another layout.
    """
    data = read_json(path, "FG-OVD file")
    return check_fgovd(data, path)


def check_fgovd(data: Any, path: str | Path) -> dict[str, Any]:
    """Check and return parsed FG-OVD annotations; raises as :func:`load_fgovd`."""
    needed = ("images", "annotations", "categories")
    if not isinstance(data, dict) or any(k not in data for k in needed):
        raise UserError(f"{path} is not an FG-OVD file: it needs {', '.join(needed)}.")
    known = {c["id"] for c in data["categories"]}
    for a in data["annotations"]:
        if "neg_category_ids" not in a:
            raise UserError(f"{path}: annotation {a.get('id')} has no neg_category_ids; this is not an FG-OVD file.")
        missing = [c for c in (a["category_id"], *a["neg_category_ids"]) if c not in known]
        if missing:
            raise UserError(f"{path}: annotation {a['id']} refers to category {missing[0]}, which is not in the file.")
    return data


def read_fgovd(data: Any, path: Path) -> list[Expression]:
    """Read each object's positive caption. Negatives are only used by ``tools/evaluate.py fgovd``."""
    data = check_fgovd(data, path)
    names = {c["id"]: c["name"] for c in data["categories"]}
    images = {i["id"]: i for i in data["images"]}
    return [
        of_annotations(a["id"], images[a["image_id"]], names[a["category_id"]], [a], "fgovd")
        for a in data["annotations"]
    ]


def read_caption_scores(path: str | Path) -> dict[int, dict[int, float]]:
    """Read JSON lines ``{"id": annotation id, "scores": {caption id: score}}``.

    Raises:
        UserError: naming the line.
    """
    out: dict[int, dict[int, float]] = {}
    for where, row in read_json_lines(path, "prediction file"):
        try:
            key = int(row["id"])
            out[key] = {int(c): float(s) for c, s in row["scores"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{where}: not {{id, scores: {{caption id: score}}}} ({error!r}).") from error
        if not all(math.isfinite(s) for s in out[key].values()):
            raise UserError(f"{where}: a score is not finite.")
    return out
