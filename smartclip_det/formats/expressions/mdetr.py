"""MDETR's ``finetune_*.json`` layout: one image entry per sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.formats.expressions.record import Expression, category_of, check_sizes, masks_of
from smartclip_det.utils.boxes import to_xywh, to_xyxy


def read_mdetr(data: Mapping[str, Any]) -> list[Expression]:
    """Read the sentences of a parsed file.

    Raises:
        UserError: for annotations of unlisted entries.
    """
    boxes: dict[Any, list[dict[str, Any]]] = {}
    known = {i["id"] for i in data["images"]}
    strays = [a for a in data["annotations"] if a["image_id"] not in known]
    if strays:
        raise UserError(
            f"{len(strays)} annotations refer to no image, e.g. image_id {strays[0]['image_id']!r} of annotation "
            f"{strays[0].get('id')!r}; image ids look like {next(iter(known), None)!r}."
        )
    for a in data["annotations"]:
        # gRefCOCO writes "no target" as one annotation marked empty.
        if not (a.get("empty") or a.get("category_id") == -1):
            boxes.setdefault(a["image_id"], []).append(a)
    return [
        Expression(
            id=i["id"],
            image_id=i.get("original_id", i["id"]),
            file_name=i["file_name"],
            sentence=i["caption"],
            boxes=tuple(to_xyxy(a["bbox"]) for a in boxes.get(i["id"], [])),
            width=int(i.get("width") or 0),
            height=int(i.get("height") or 0),
            dataset=i.get("dataset_name", ""),
            split=i.get("split", ""),
            category=i.get("category", ""),
            masks=masks_of(boxes.get(i["id"], [])),
            ann_ids=tuple(a["original_id"] for a in boxes.get(i["id"], []) if "original_id" in a),
        )
        for i in data["images"]
    ]


def mdetr_of(expressions: Sequence[Expression]) -> dict[str, Any]:
    """Convert to MDETR's layout; sentences without a target get one annotation marked ``empty``, as in gRefCOCO."""
    check_sizes(expressions, "mdetr")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    integer_ids = all(isinstance(e.id, int) for e in expressions)
    for number, e in enumerate(expressions):
        n = e.id if integer_ids else number
        images.append(
            {
                "id": n,
                "file_name": e.file_name,
                "height": e.height,
                "width": e.width,
                "original_id": e.image_id,
                "caption": e.sentence,
                "dataset_name": e.dataset,
                "split": e.split,
                **category_of(e),
            }
        )
        for k, box in enumerate(e.boxes):
            x, y, w, h = to_xywh(box)
            annotation: dict[str, Any] = {
                "id": len(annotations),
                "image_id": n,
                "category_id": 1,
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
            }
            if len(e.ann_ids) == len(e.boxes):
                annotation["original_id"] = e.ann_ids[k]
            if len(e.masks) == len(e.boxes):
                annotation["segmentation"] = e.masks[k]
            annotations.append(annotation)
        if not e.boxes:
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": n,
                    "category_id": -1,
                    "bbox": [0, 0, 0, 0],
                    "area": -1,
                    "iscrowd": -1,
                    "empty": True,
                }
            )
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
