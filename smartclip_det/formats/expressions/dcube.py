"""D-cube (arXiv 2307.12813) as COCO annotations whose categories are sentences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.formats.expressions.record import Expression, of_annotations


def read_dcube(data: Mapping[str, Any], path: Path) -> list[Expression]:
    """Read each sentence queried on an image, with its boxes, possibly none.

    The queried sentences are the ``sent_ids`` of the image (its scenario), or else those with a box in the image.

    Raises:
        UserError: for an unlisted sentence.
    """
    names = {c["id"]: c["name"] for c in data["categories"]}
    boxes: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
    for a in data["annotations"]:
        boxes.setdefault((a["image_id"], a["category_id"]), []).append(a)
    out = []
    for image in data["images"]:
        own = [c for i, c in boxes if i == image["id"]] if "sent_ids" not in image else image["sent_ids"]
        for sentence in own:
            if sentence not in names:
                raise UserError(f"{path}: image {image['id']} refers to sentence {sentence}, which is not in the file.")
            targets = boxes.get((image["id"], sentence), [])
            out.append(of_annotations(f"{image['id']}_{sentence}", image, names[sentence], targets, "dcube"))
    return out
