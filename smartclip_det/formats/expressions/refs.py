"""The refer toolbox's ``refs(SPLIT).p`` (or its JSON copy, or gRefCOCO's) with ``instances.json`` in the same folder.

Pickles are read by an unpickler that allows no classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.formats.expressions.record import Expression, category_of, masks_of
from smartclip_det.formats.json_files import read_json
from smartclip_det.utils.boxes import to_xywh, to_xyxy


def image_file_of(ref_file_name: str, ann_id: int) -> str:
    """Strip the annotation counter from a refs file name such as ``COCO_train2014_000000581857_16.jpg``."""
    stem, dot, suffix = ref_file_name.rpartition(".")
    parts = stem.split("_")
    return "_".join(parts[:-1]) + dot + suffix if len(parts) > 3 or (parts[-1] == str(ann_id)) else ref_file_name


def _targets(ref: dict[str, Any]) -> list[int]:
    """Return the annotation ids of a ref: one, or gRefCOCO's list, where [-1] means no target."""
    ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
    return [i for i in ids if i != -1]


def read_refs(refs: Any, path: Path, instances: str | Path | None) -> list[Expression]:
    """Read the sentences of a parsed refs list.

    Args:
        refs: content of the file.
        path: path of the file.
        instances: ``instances.json``; default: same folder.

    Raises:
        UserError: for another layout, and for missing boxes.
    """
    if not isinstance(refs, list) or not all(isinstance(r, dict) and "sentences" in r for r in refs):
        raise UserError(f"{path} is not a refs list: each entry needs sentences, ann_id and image_id.")
    source = Path(instances) if instances is not None else path.parent / "instances.json"
    if not source.is_file():
        raise UserError(f"{path} needs its boxes, but {source} does not exist. Pass it with --instances.")
    data = read_json(source, "instances file")
    images = {i["id"]: i for i in data["images"]}
    annotations = {a["id"]: a for a in data["annotations"]}
    lost = [i for r in refs for i in _targets(r) if i not in annotations]
    if lost:
        raise UserError(f"{source} lacks {len(lost)} annotations that {path.name} refers to, e.g. {lost[0]}.")
    foreign = [(r, i) for r in refs for i in _targets(r) if annotations[i]["image_id"] != r["image_id"]]
    if foreign:
        ref, target = foreign[0]
        raise UserError(
            f"{path.name} and {source} do not belong together: {len(foreign)} annotations are on other images than "
            f"their refs, e.g. annotation {target} on image {annotations[target]['image_id']!r}, its ref on "
            f"{ref['image_id']!r}."
        )
    records = []
    for ref in refs:
        image = images.get(ref["image_id"], {})
        targets = [annotations[i] for i in _targets(ref)]
        name = image.get("file_name") or image_file_of(ref["file_name"], ref["ann_id"])
        for s in ref["sentences"]:
            records.append(
                Expression(
                    id=s["sent_id"],
                    image_id=ref["image_id"],
                    file_name=name,
                    sentence=s["sent"],
                    boxes=tuple(to_xyxy(a["bbox"]) for a in targets),
                    width=int(image.get("width") or 0),
                    height=int(image.get("height") or 0),
                    split=ref.get("split", ""),
                    ann_ids=tuple(a["id"] for a in targets),
                    masks=masks_of(targets),
                    category=ref.get("category", ""),
                )
            )
    return records


def refs_of(expressions: Sequence[Expression]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Convert to the refer toolbox's refs list and ``instances.json``; no or several targets as in gRefCOCO."""
    images: dict[Any, dict[str, Any]] = {}
    annotations: dict[tuple[Any, tuple[float, ...]], dict[str, Any]] = {}
    refs: list[dict[str, Any]] = []
    for e in expressions:
        images.setdefault(
            e.image_id, {"id": e.image_id, "file_name": e.file_name, "width": e.width, "height": e.height}
        )
        ids = []
        for k, box in enumerate(e.boxes):
            key = (e.image_id, tuple(box))
            if key not in annotations:
                x, y, w, h = to_xywh(box)
                annotations[key] = {
                    "id": len(annotations) + 1,
                    "image_id": e.image_id,
                    "category_id": 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
                if len(e.masks) == len(e.boxes):
                    annotations[key]["segmentation"] = e.masks[k]
            ids.append(annotations[key]["id"])
        refs.append(
            {
                "ref_id": len(refs),
                "ann_id": ids[0] if len(ids) == 1 else ids or [-1],
                "image_id": e.image_id,
                "category_id": 1,
                "split": e.split,
                "file_name": e.file_name,
                "sent_ids": [e.id],
                "sentences": [{"sent_id": e.id, "sent": e.sentence, "raw": e.sentence, "tokens": e.sentence.split()}],
                **category_of(e),
            }
        )
    instances: Mapping[str, Any] = {
        "images": list(images.values()),
        "annotations": list(annotations.values()),
        "categories": [{"id": 1, "name": "object"}],
    }
    return refs, dict(instances)
