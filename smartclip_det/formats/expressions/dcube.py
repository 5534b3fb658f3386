"""D-cube (arXiv 2307.12813) as COCO annotations whose categories are sentences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.formats.expressions.record import Expression, of_annotations


def read_dcube(data: Mapping[str, Any], path: Path) -> list[Expression]:
    """Each sentence that is asked of an image, with its boxes or none.

    Asked are the ``sent_ids`` of the image (its scenario); without them, the sentences that have a box in it.

    Raises:
        UserError: for a sentence that the file does not have.
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
                raise UserError(
                    f"{path}: image {image['id']} asks for sentence {sentence}, which the file does not have."
                )
            mine = boxes.get((image["id"], sentence), [])
            out.append(of_annotations(f"{image['id']}_{sentence}", image, names[sentence], mine, "dcube"))
    return out
