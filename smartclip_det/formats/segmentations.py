"""COCO segmentations, checked before they reach C code.

The C code of pycocotools trusts what it is given: a NaN or a coordinate of 1e308 ends the process or never comes back,
run lengths past the image's end are written past the buffer's, four numbers in a polygon's place are read as a box.
So every segmentation of a file comes through here: annotations, predictions, expressions, training masks.

Read: polygons, uncompressed run lengths (a list of counts) and compressed ones (a text). Everything is refused that
has not one meaning. Coordinates are pixels, x before y; sizes are (height, width), as in COCO files.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from smartclip_det.core.errors import UserError

#: Coordinates may leave the image by this many of its longer sides. Annotators overshoot by some pixels; what is
#: further away is another unit, or garbage that the C code would draw for minutes.
FAR = 10
#: The C code counts pixels in 32 bits.
MOST_PIXELS = 2**31 - 1
FORMS = "polygons [[x1, y1, x2, y2, x3, y3, ...], ...] or run lengths {size: [height, width], counts}"


def _masks() -> Any:
    # Not with the module: readers of box files and captions need no pycocotools.
    from pycocotools import mask

    return mask


class RunLengths(dict[str, Any]):
    """Compressed COCO run lengths ``{size, counts}`` that were checked; they are not looked at twice."""


def segmentation_problem(segmentation: Any, height: Any, width: Any) -> str:
    """What is wrong with a segmentation; empty for nothing.

    Args:
        segmentation: of any form, as a file holds it.
        height: of its image in pixels.
        width: likewise.
    """
    if not (_is_side(height) and _is_side(width) and height * width <= MOST_PIXELS):
        return f"Its image has no usable size (height {height!r}, width {width!r}), and masks need one."
    if isinstance(segmentation, Mapping) and segmentation:
        return _run_length_problem(segmentation, int(height), int(width))
    if isinstance(segmentation, list | tuple) and len(segmentation):
        return _polygon_problem(segmentation, int(height), int(width))
    if segmentation is None or (isinstance(segmentation, list | tuple | Mapping | str) and not segmentation):
        return f"It has no segmentation (given: {segmentation!r}). Give {FORMS}."
    return f"segmentation is {reprlib.repr(segmentation)}; give {FORMS}."


def _is_side(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float | np.integer) and _is_whole(value, 1)


def _is_whole(value: Any, least: int = 0) -> bool:
    return bool(least <= value <= MOST_PIXELS and value == int(value))


def _polygon_problem(polygons: Sequence[Any], height: int, width: int) -> str:
    if not isinstance(polygons[0], list | tuple | Mapping):
        return (
            "segmentation is one flat list; polygons are a list of lists: write [[x1, y1, x2, y2, x3, y3, ...]] "
            f"(given: {reprlib.repr(polygons)})."
        )
    far = FAR * max(height, width)
    for n, polygon in enumerate(polygons):
        if not isinstance(polygon, list | tuple):
            return f"part {n} of the segmentation is {reprlib.repr(polygon)}; give {FORMS}."
        if not set(map(type, polygon)) <= {int, float}:
            odd = next(v for v in polygon if type(v) not in (int, float))
            return f"polygon {n} holds {reprlib.repr(odd)}, which is no number."
        # Two points after a whole polygon are a line, which the references draw; in its place they are taken for a box.
        if len(polygon) % 2 or len(polygon) < (6 if n == 0 else 4):
            return (
                f"polygon {n} has {len(polygon)} numbers; x and y of three points at least are needed. A box is "
                "[[x, y, x + w, y, x + w, y + h, x, y + h]]."
            )
        # A NaN is in no range.
        if not all(-far <= v <= far for v in polygon):
            odd = next(v for v in polygon if not -far <= v <= far)
            return (
                f"polygon {n} has the coordinate {reprlib.repr(odd)}, which is not finite or far outside of its "
                f"image of {width} x {height} pixels."
            )
    return ""


def _run_length_problem(found: Mapping[str, Any], height: int, width: int) -> str:
    missing = [k for k in ("size", "counts") if found.get(k) is None]
    if missing:
        return f"Run lengths lack {' and '.join(missing)}; give {FORMS}."
    size, counts = found["size"], found["counts"]
    if not (isinstance(size, list | tuple) and len(size) == 2 and all(_is_side(v) for v in size)):
        return f"Run lengths have size={reprlib.repr(size)}; [height, width] is needed."
    if list(size) != [height, width]:
        turned = (
            " Height and width may have changed places." if list(size) == [width, height] != [height, width] else ""
        )
        return (
            f"Run lengths are of {size[1]:g} x {size[0]:g} pixels (width x height), their image has {width} x "
            f"{height}.{turned} Make masks at the size of the image."
        )
    if isinstance(found, RunLengths):
        return ""
    if isinstance(counts, list | tuple):
        numbers = not any(isinstance(c, bool) or not isinstance(c, int | float) for c in counts)
        runs = np.array(counts, dtype=np.int64) if numbers and all(_is_whole(c) for c in counts) else None
    else:
        runs = counts_of(counts)
    if runs is None:
        return f"Run lengths hold counts that are none: {reprlib.repr(counts)}."
    if (len(runs) and int(runs.min()) < 0) or int(runs.sum()) != height * width:
        return f"Run lengths cover {int(runs.sum())} pixels, their image has {height * width}: they are cut or garbled."
    return ""


def counts_of(counts: str | bytes | Any) -> np.ndarray | None:
    """``[N]`` lengths of the runs in a compressed text, zeros first; None for a text that is no such thing.

    Five bits a character, the sixth says that the number goes on; from the fourth on a number is the difference to
    the last but one (``rleFrString`` of pycocotools).
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
    """A segmentation of any form as compressed run lengths; parts of a polygon that overlap count once.

    Raises:
        UserError: telling what is wrong with it; the caller knows which entry it is.
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
            whole = {"size": list(size), "counts": [int(c) for c in counts]}
            counts = _masks().frPyObjects(whole, *size)["counts"]
    else:
        counts = _masks().merge(_masks().frPyObjects([list(p) for p in segmentation], *size))["counts"]
    return RunLengths(size=list(size), counts=counts if isinstance(counts, str) else counts.decode("ascii"))


def with_run_lengths(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """COCO annotations with all segmentations as compressed run lengths, each a plain dict, as evaluators want them.

    Args:
        data: checked COCO or LVIS annotations.
        where: their file, for messages.

    Raises:
        UserError: naming the first annotation without a usable segmentation.
    """
    sizes = {i["id"]: (i.get("height"), i.get("width")) for i in data["images"]}
    annotations = []
    for n, a in enumerate(data["annotations"]):
        try:
            annotations.append({**a, "segmentation": dict(run_lengths(a.get("segmentation"), *sizes[a["image_id"]]))})
        except UserError as error:
            raise UserError(
                f"{where}: entry {n} of annotations (id {a.get('id')!r}, image {a['image_id']!r}): {error} "
                "Mend the file, or work on boxes alone (--iou-type bbox)."
            ) from error
    return {**data, "annotations": annotations}


def whole_mask(segmentations: Sequence[Any], size: tuple[Any, Any], where: str = "") -> np.ndarray:
    """``[H, W]`` bool: the union of segmentations; nothing for none of them.

    Raises:
        UserError: telling what is wrong with one of them, after ``where``.
    """
    try:
        rows = [dict(run_lengths(s, *size)) for s in segmentations]
    except UserError as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from error
    if not rows:
        return np.zeros((int(size[0]), int(size[1])), dtype=bool)
    return _masks().decode(_masks().merge(rows)).astype(bool)


def mask_areas(masks: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """``[N]`` pixels of compressed run lengths."""
    return np.array(_masks().area([dict(m) for m in masks]) if masks else [], dtype=np.int64)


def encode_mask(mask: np.ndarray) -> RunLengths:
    """Compressed run lengths of a mask ``[H, W]``."""
    found = _masks().encode(np.asfortranarray(mask.astype(np.uint8)))
    return RunLengths(size=[int(v) for v in found["size"]], counts=found["counts"].decode("ascii"))
