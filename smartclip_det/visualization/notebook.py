"""Notebook display of detections, and crops of boxes. Boxes are xyxy pixels."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from smartclip_det.visualization.pages import data_uri, render_page

#: Longer side of an image in a notebook, and maximum number of table rows.
SIDE, ROWS = 900, 30


def png_of(picture: Image.Image, side: int = SIDE) -> bytes:
    """Encode an image as PNG, reduced to ``side`` if it is larger."""
    small = picture.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return buffer.getvalue()


def answer_page(
    title: str, picture: bytes | None, rows: Sequence[tuple[str, float, Sequence[float]]], count: int
) -> str:
    """An image above a table of names, scores and boxes.

    Args:
        title: title line.
        picture: PNG file.
        rows: name, score and box of each row.
        count: number of all detections; the number of those without a row is shown.
    """
    return render_page(
        "detections.html",
        title=title,
        image=None if picture is None else data_uri(picture, "png"),
        rows=[(name, f"{score:.3f}", ", ".join(f"{v:.0f}" for v in box)) for name, score, box in rows],
        more=count - len(rows),
    )


def crops_of(picture: Image.Image, boxes: np.ndarray, context: float = 1.0) -> list[Image.Image]:
    """Crop each box, clipped to the image; crops have at least one pixel.

    Args:
        picture: any PIL image.
        boxes: ``[N, 4]`` xyxy, inside the image.
        context: scale of the crop's sides relative to the box.
    """
    wide, high = picture.size
    centres, halves = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * context
    lows, highs = np.floor(centres - halves).astype(int), np.ceil(centres + halves).astype(int)
    out = []
    for (x1, y1), (x2, y2) in zip(lows.tolist(), highs.tolist(), strict=True):
        left, top = min(max(x1, 0), wide - 1), min(max(y1, 0), high - 1)
        out.append(picture.crop((left, top, max(left + 1, min(x2, wide)), max(top + 1, min(y2, high)))))
    return out
