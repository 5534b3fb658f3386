"""The common record of a sentence, for all layouts. Boxes are xyxy pixels."""

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
        image_id: COCO image id, or another identifier of the image.
        file_name: image file, without the annotation id appended in refs files.
        sentence: the text.
        boxes: xyxy boxes; none, one or many.
        width: image width in pixels, 0 if unknown.
        height: image height in pixels, 0 if unknown.
        split: train, val, testA, testB or test; empty if unknown.
        dataset: data set name, empty if unknown.
        ann_ids: source annotation ids.
        masks: COCO segmentation of each box (RLE or polygons); empty if the file has none.
        category: class name of the object in its data set, for class averages; empty if unknown.
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
    """Build an expression from COCO annotations of one image."""
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
    """Return the segmentations if every annotation has one; otherwise nothing."""
    masks = tuple(a["segmentation"] for a in annotations if a.get("segmentation"))
    return masks if len(masks) == len(annotations) else ()


def check_sizes(expressions: Sequence[Expression], layout: str) -> None:
    """Raise an error for expressions without image sizes, for layouts that require them."""
    without_size = [e.id for e in expressions if not (e.width and e.height)]
    if without_size:
        raise UserError(
            f"{layout} needs image sizes; {len(without_size)} sentences have none, e.g. id {without_size[0]!r}."
        )


def category_of(expression: Expression) -> dict[str, str]:
    """Return the category as a dictionary entry, if there is one."""
    return {"category": expression.category} if expression.category else {}
