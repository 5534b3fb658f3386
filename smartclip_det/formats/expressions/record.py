"""One record for each sentence, whatever file it came from. Boxes are xyxy pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.utils.boxes import Box, to_xyxy


@dataclass(frozen=True)
class Expression:
    """One sentence with the boxes it refers to.

    Attributes:
        id: sentence id (image entry id in MDETR files).
        image_id: COCO image id, or whatever names the image.
        file_name: image file, without the annotation id that refs files append.
        sentence: the text.
        boxes: xyxy boxes; none, one or many.
        width: image width in pixels, 0 if unknown.
        height: image height in pixels, 0 if unknown.
        split: train, val, testA, testB or test; empty if unknown.
        dataset: data set name, empty if unknown.
        ann_ids: source annotation ids.
        masks: COCO segmentation of each box (run lengths or polygons); empty where the file has none.
        category: class of the object as its data set names it, for class averages; empty if unknown.
    """

    id: int | str
    image_id: int | str
    file_name: str
    sentence: str
    boxes: tuple[Box, ...]
    width: int = 0
    height: int = 0
    split: str = ""
    dataset: str = ""
    ann_ids: tuple[int, ...] = ()
    masks: tuple[Any, ...] = ()
    category: str = ""


@dataclass(frozen=True)
class GroundedBoxes:
    """Predicted boxes of one sentence, best first."""

    boxes: tuple[Box, ...]
    scores: tuple[float, ...]


def of_annotations(
    key: int | str, image: Mapping[str, Any], sentence: str, annotations: Sequence[Mapping[str, Any]], dataset: str
) -> Expression:
    """The expression of COCO annotations of one image."""
    return Expression(
        key,
        image["id"],
        image["file_name"],
        sentence,
        tuple(to_xyxy(a["bbox"]) for a in annotations),
        int(image.get("width") or 0),
        int(image.get("height") or 0),
        dataset=dataset,
        ann_ids=tuple(a["id"] for a in annotations),
        masks=masks_of(annotations),
    )


def masks_of(annotations: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
    """Segmentations where every annotation has one; none otherwise."""
    found = tuple(a["segmentation"] for a in annotations if a.get("segmentation"))
    return found if len(found) == len(annotations) else ()


def check_sizes(expressions: Sequence[Expression], layout: str) -> None:
    """Refuse expressions without image sizes, for layouts that hold them."""
    lacking = [e.id for e in expressions if not (e.width and e.height)]
    if lacking:
        raise UserError(f"{layout} needs image sizes; {len(lacking)} sentences have none, e.g. id {lacking[0]!r}.")


def category_of(expression: Expression) -> dict[str, str]:
    """The category as an entry, where there is one."""
    return {"category": expression.category} if expression.category else {}
