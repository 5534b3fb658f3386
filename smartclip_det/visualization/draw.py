"""Draw boxes, similarity maps and mask strips on images.

The colour of a name depends only on its index in the list of names. Labels stay within the canvas, are truncated to its
width, and are placed to overlap least with other labels. Boxes are xyxy pixels.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from smartclip_det.core.errors import UserError
from smartclip_det.visualization.lettering import Font, fitting, font, shown_labels

#: Ten colours that are distinct on white and for colour-blind readers (after Okabe and Ito, darkened).
PALETTE = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 145, 105),
    (190, 90, 150),
    (200, 140, 0),
    (60, 140, 200),
    (110, 70, 160),
    (150, 40, 40),
    (70, 110, 30),
    (90, 90, 90),
)


#: Minimum contrast of white text on a label (WCAG, large text).
CONTRAST = 3.0
_GOLDEN = 0.6180339887498949


def colour_of(index: int) -> tuple[int, int, int]:
    """Colour of the ``index``-th name: the palette, then hues by the golden ratio in three shades."""
    if index < len(PALETTE):
        return PALETTE[index]
    light = (0.28, 0.38, 0.46)[index % 3]
    while True:
        red, green, blue = colorsys.hls_to_rgb((index * _GOLDEN) % 1, light, 0.6)
        colour = (round(255 * red), round(255 * green), round(255 * blue))
        if contrast_with_white(colour) >= CONTRAST:
            return colour
        light -= 0.02


def contrast_with_white(colour: tuple[int, int, int]) -> float:
    """WCAG contrast ratio of white text on a colour, 1 to 21."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[str],
    names: Sequence[str],
    scores: Sequence[float] | None = None,
    tracks: Sequence[int] | None = None,
) -> Image.Image:
    """Draw labelled boxes on a copy of an image.

    Args:
        image: any PIL image; the copy is RGB.
        boxes: N xyxy boxes, clipped to the image.
        labels: N names, each one of ``names``.
        names: all names; their order determines the colours.
        scores: N scores to write after the names.
        tracks: N track ids to write after the names; 0 for none.
    """
    if any(len(v) != len(boxes) for v in (labels, scores, tracks) if v is not None):
        raise UserError(f"{len(boxes)} boxes need the same number of labels ({len(labels)} given) and scores.")
    canvas = image.convert("RGB")
    draw = ImageDraw.Draw(canvas)
    width, height = canvas.size
    line = max(2, round(min(canvas.size) / 200))
    size = max(11, round(min(canvas.size) / 32))
    shown = shown_labels(names)
    position = {n: i for i, n in enumerate(names)}
    taken: list[tuple[float, float, float, float]] = []
    drawn: list[tuple[int, tuple[float, float, float, float]]] = []
    # Large boxes first, so that small ones stay visible.
    for i in sorted(range(len(boxes)), key=lambda j: -_area(boxes[j])):
        x1, y1, x2, y2 = (float(v) for v in boxes[i])
        colour = colour_of(position[labels[i]])
        x1, x2 = max(0.0, min(x1, x2)), min(width - 1.0, max(x1, x2))
        y1, y2 = max(0.0, min(y1, y2)), min(height - 1.0, max(y1, y2))
        if x2 < x1 or y2 < y1:
            continue
        draw.rectangle((x1, y1, x2, y2), outline=colour, width=line)
        drawn.append((i, (x1, y1, x2, y2)))
    for i, corners in drawn:
        colour = colour_of(position[labels[i]])
        name, score = shown[labels[i]], "" if scores is None else f" {scores[i]:.2f}"
        score = f" #{tracks[i]}{score}" if tracks is not None and tracks[i] else score
        face = font(size, name)
        text = fitting(name, face, width - 6 - face.getlength(score)) + score
        box = _label_place(draw, text, face, corners, canvas.size, taken)
        taken.append(box)
        draw.rectangle(box, fill=colour)
        draw.text((box[0] + 3, box[1] + 1), text, fill=(255, 255, 255), font=face)
    return canvas


def _area(box: Sequence[float]) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _label_place(
    draw: ImageDraw.ImageDraw,
    text: str,
    face: Font,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    taken: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    """Above the box, inside its top, below, or inside its bottom; left-aligned, then right-aligned.

    Positions are clipped to the canvas; the first that overlaps no label, or the one that overlaps labels least.
    """
    left, _, right, bottom = draw.textbbox((0, 0), text, font=face)
    w, h = right - left + 6, bottom + 4
    places = []
    for y in (box[1] - h, box[1], box[3], box[3] - h):
        for x in (box[0], box[2] - w):
            x = min(max(0.0, x), max(0.0, size[0] - w))
            y = min(max(0.0, y), max(0.0, size[1] - h))
            places.append((x, y, x + w, y + h))
    return min(places, key=lambda p: sum(_common(p, t) for t in taken))


def _common(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection area of two boxes."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def draw_heatmap(image: Image.Image, values: np.ndarray, alpha: float = 0.55) -> Image.Image:
    """Overlay an ``[h, w]`` map on a grey image: bilinear, blue (minimum) to red (maximum) of this map."""
    from matplotlib import colormaps

    values = np.asarray(values, dtype=float)
    span = float(values.max() - values.min())
    unit = (values - values.min()) / span if span > 0 else np.zeros_like(values)
    coloured = Image.fromarray((colormaps["turbo"](unit)[..., :3] * 255).astype(np.uint8))
    # Grey, so that every colour comes from the map.
    grey = image.convert("L").convert("RGB")
    return Image.blend(grey, coloured.resize(image.size, Image.Resampling.BILINEAR), alpha)


def draw_mask_strip(masks: np.ndarray, labels: Sequence[str], cell: int = 2, height: int = 18) -> Image.Image:
    """One row per text: the dimensions that its ``[K, D]`` mask keeps (dark), and their fraction."""
    masks = np.asarray(masks, dtype=float)
    margin, shown = 200, shown_labels(labels, 28)
    canvas = Image.new("RGB", (margin + masks.shape[1] * cell + 60, len(masks) * (height + 6) + 6), "white")
    draw = ImageDraw.Draw(canvas)
    for k, (row, label) in enumerate(zip(masks, labels, strict=True)):
        y = 6 + k * (height + 6)
        strip = Image.fromarray((255 - 215 * row[None]).astype(np.uint8)).resize(
            (len(row) * cell, height), Image.Resampling.NEAREST
        )
        canvas.paste(strip.convert("RGB"), (margin, y))
        face = font(12, shown[label])
        draw.text((6, y + 2), fitting(shown[label], face, margin - 12), fill=colour_of(k), font=face)
        draw.text((margin + len(row) * cell + 6, y + 2), f"{row.mean():.0%}", fill=(40, 40, 40), font=font(12))
    return canvas
