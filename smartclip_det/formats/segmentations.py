"""COCO segmentations, validated before they reach C code.

The C code of pycocotools trusts its input: a NaN or a coordinate of 1e308 crashes or hangs the process, run lengths
beyond the image overflow a buffer, and four numbers instead of a polygon are read as a box. So every segmentation in a
file goes through this module: annotations, predictions, expressions, training masks.

Accepted: polygons, uncompressed RLE (a list of counts) and compressed RLE (a string). Anything ambiguous is an error.
Coordinates are pixels, x before y; sizes are (height, width), as in COCO files.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from smartclip_det.core.errors import UserError

#: Coordinates may leave the image by this many times its longer side. Annotators overshoot by a few pixels; anything
#: further out is in another unit, or garbage that the C code would take minutes to draw.
FAR = 10
#: The C code counts pixels in 32 bits.
MOST_PIXELS = 2**31 - 1
FORMS = "polygons [[x1, y1, x2, y2, x3, y3, ...], ...] or run lengths {size: [height, width], counts}"


def _masks() -> Any:
    # Imported lazily: readers of box files and captions do not need pycocotools.
    from pycocotools import mask

    return mask


class RunLengths(dict[str, Any]):
    """Validated compressed COCO RLE ``{size, counts}``; not validated again."""


def segmentation_problem(segmentation: Any, height: Any, width: Any) -> str:
    """Describe what is wrong with a segmentation; empty if valid.

    Args:
        segmentation: segmentation in any format, as read from a file.
        height: image height in pixels.
        width: image width in pixels.
    """
    if not (_is_side(height) and _is_side(width) and height * width <= MOST_PIXELS):
        return f"Its image has no valid size (height {height!r}, width {width!r}), which masks require."
    if isinstance(segmentation, Mapping) and segmentation:
        return _run_length_problem(segmentation, int(height), int(width))
    if isinstance(segmentation, list | tuple) and len(segmentation):
        return _polygon_problem(segmentation, int(height), int(width))
    if segmentation is None or (isinstance(segmentation, list | tuple | Mapping | str) and not segmentation):
        return f"It has no segmentation (got {segmentation!r}). Expected {FORMS}."
    return f"segmentation is {reprlib.repr(segmentation)}; expected {FORMS}."


def _is_side(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float | np.integer) and _is_whole(value, 1)


def _is_whole(value: Any, least: int = 0) -> bool:
    return bool(least <= value <= MOST_PIXELS and value == int(value))


def _polygon_problem(polygons: Sequence[Any], height: int, width: int) -> str:
    if not isinstance(polygons[0], list | tuple | Mapping):
        return (
            "segmentation is a flat list; polygons must be a list of lists: write [[x1, y1, x2, y2, x3, y3, ...]] "
            f"(got {reprlib.repr(polygons)})."
        )
    far = FAR * max(height, width)
    for n, polygon in enumerate(polygons):
        if not isinstance(polygon, list | tuple):
            return f"part {n} of the segmentation is {reprlib.repr(polygon)}; expected {FORMS}."
        if not set(map(type, polygon)) <= {int, float}:
            odd = next(v for v in polygon if type(v) not in (int, float))
            return f"polygon {n} has {reprlib.repr(odd)}, which is not a number."
        # Two points after a complete polygon are a line, which pycocotools draws; in first place they are read as a
        # box.
        if len(polygon) % 2 or len(polygon) < (6 if n == 0 else 4):
            return (
                f"polygon {n} has {len(polygon)} numbers; expected x and y of at least three points. A box is "
                "[[x, y, x + w, y, x + w, y + h, x, y + h]]."
            )
        # The comparison is also false for NaN.
        if not all(-far <= v <= far for v in polygon):
            odd = next(v for v in polygon if not -far <= v <= far)
            return (
                f"polygon {n} has the coordinate {reprlib.repr(odd)}, which is not finite, or far outside the "
                f"image of {width} x {height} pixels."
            )
    return ""


def _run_length_problem(rle: Mapping[str, Any], height: int, width: int) -> str:
    missing = [k for k in ("size", "counts") if rle.get(k) is None]
    if missing:
        return f"Run lengths lack {' and '.join(missing)}; expected {FORMS}."
    size, counts = rle["size"], rle["counts"]
    if not (isinstance(size, list | tuple) and len(size) == 2 and all(_is_side(v) for v in size)):
        return f"Run lengths have size={reprlib.repr(size)}; expected [height, width]."
    if list(size) != [height, width]:
        turned = " Height and width may be swapped." if list(size) == [width, height] != [height, width] else ""
        return (
            f"Run lengths are for {size[1]:g} x {size[0]:g} pixels (width x height), but the image has {width} x "
            f"{height}.{turned} Masks must have the size of the image."
        )
    if isinstance(rle, RunLengths):
        return ""
    if isinstance(counts, list | tuple):
        numbers = not any(isinstance(c, bool) or not isinstance(c, int | float) for c in counts)
        runs = np.array(counts, dtype=np.int64) if numbers and all(_is_whole(c) for c in counts) else None
    else:
        runs = counts_of(counts)
    if runs is None:
        return f"Run lengths have invalid counts: {reprlib.repr(counts)}."
    if (len(runs) and int(runs.min()) < 0) or int(runs.sum()) != height * width:
        return f"Run lengths cover {int(runs.sum())} pixels, but the image has {height * width}: truncated or corrupt."
    return ""


def counts_of(counts: str | bytes | Any) -> np.ndarray | None:
    """``[N]`` run lengths of a compressed RLE string, zeros first; None if it is not valid.

    Each character has five bits, and a sixth that says whether the number continues; from the fourth number on, values
    are differences to the last but one (``rleFrString`` of pycocotools).
    """
    if not isinstance(counts, str | bytes) or not counts:
        return None
    try:
        data = counts if isinstance(counts, bytes) else counts.encode("ascii")
    except UnicodeEncodeError:
        return None
    codes = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - 48
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.r_[0, ends[:-1] + 1]
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:
        return None
    values = np.add.reduceat((codes & 31) << (5 * place), starts)
    values -= ((codes[ends] & 16) != 0).astype(np.int64) << (5 * (place[ends] + 1))
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


def run_lengths(segmentation: Any, height: Any, width: Any) -> RunLengths:
    """Convert a segmentation in any format to compressed RLE; overlapping polygon parts count once.

    Raises:
        UserError: with the problem; the caller adds which entry it is.
    """
    problem = segmentation_problem(segmentation, height, width)
    if problem:
        raise UserError(problem)
    if isinstance(segmentation, RunLengths):
        return segmentation
    size = (int(height), int(width))
    if isinstance(segmentation, Mapping):
        counts = segmentation["counts"]
        if isinstance(counts, list | tuple):
            rle = {"size": list(size), "counts": [int(c) for c in counts]}
            counts = _masks().frPyObjects(rle, *size)["counts"]
    else:
        counts = _masks().merge(_masks().frPyObjects([list(p) for p in segmentation], *size))["counts"]
    return RunLengths(size=list(size), counts=counts if isinstance(counts, str) else counts.decode("ascii"))


def with_run_lengths(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Convert all segmentations of COCO annotations to compressed RLE, as plain dicts for evaluators.

    Args:
        data: checked COCO or LVIS annotations.
        where: file of the annotations, for messages.

    Raises:
        UserError: names the first annotation without a valid segmentation.
    """
    sizes = {i["id"]: (i.get("height"), i.get("width")) for i in data["images"]}
    annotations = []
    for n, a in enumerate(data["annotations"]):
        try:
            annotations.append({**a, "segmentation": dict(run_lengths(a.get("segmentation"), *sizes[a["image_id"]]))})
        except UserError as error:
            raise UserError(
                f"{where}: entry {n} of annotations (id {a.get('id')!r}, image {a['image_id']!r}): {error} "
                "Fix the file, or evaluate boxes only (--iou-type bbox)."
            ) from error
    return {**data, "annotations": annotations}


def whole_mask(segmentations: Sequence[Any], size: tuple[Any, Any], where: str = "") -> np.ndarray:
    """``[H, W]`` bool: the union of segmentations; all False for an empty list.

    Raises:
        UserError: with the problem, prefixed by ``where``.
    """
    try:
        rows = [dict(run_lengths(s, *size)) for s in segmentations]
    except UserError as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from error
    if not rows:
        return np.zeros((int(size[0]), int(size[1])), dtype=bool)
    return _masks().decode(_masks().merge(rows)).astype(bool)


def mask_areas(masks: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """``[N]`` areas in pixels of compressed RLE masks."""
    return np.array(_masks().area([dict(m) for m in masks]) if masks else [], dtype=np.int64)


def encode_mask(mask: np.ndarray) -> RunLengths:
    """Encode a mask ``[H, W]`` as compressed RLE."""
    rle = _masks().encode(np.asfortranarray(mask.astype(np.uint8)))
    return RunLengths(size=[int(v) for v in rle["size"]], counts=rle["counts"].decode("ascii"))
