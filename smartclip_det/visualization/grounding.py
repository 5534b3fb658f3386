"""Grounding figures: boxes, score bars, the tree of the expression, and a similarity map for each of its texts.

Boxes are xyxy pixels of the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from smartclip_det.core.errors import UserError
from smartclip_det.visualization.draw import colour_of, draw_boxes, draw_heatmap
from smartclip_det.visualization.lettering import fitting, font, shown_labels

INK, TARGET = (40, 40, 40), (0, 150, 0)
_WIDTH, _BAR, _LINE = 320, 16, 15


def grounding_panel(
    image: Image.Image,
    expression: str,
    boxes: Sequence[Sequence[float]],
    scores: Sequence[float],
    *,
    targets: Sequence[Sequence[float]] = (),
    outline: Sequence[str] = (),
    maps: Mapping[str, np.ndarray] | None = None,
    title: str = "",
) -> Image.Image:
    """Draw one expression: its top boxes numbered, a bar for each score, the tree, and similarity maps.

    Args:
        image: any PIL image.
        expression: the sentence.
        boxes: N boxes, by descending score; the first five are drawn.
        scores: N scores; bars are relative to the largest.
        targets: true boxes, drawn green.
        outline: lines of the tree (``Entity.outline``).
        maps: ``[h, w]`` masked similarity of each text.
        title: a line at the top, e.g. the overlap.

    Raises:
        UserError: if the numbers of boxes and scores differ.
    """
    if len(boxes) != len(scores):
        raise UserError(f"{len(boxes)} boxes need the same number of scores; given {len(scores)}.")
    shown = min(5, len(boxes))
    names = [str(n + 1) for n in range(shown)]
    picture = draw_boxes(image, boxes[:shown], names, names)
    pen = ImageDraw.Draw(picture)
    line = max(2, round(min(picture.size) / 150))
    for box in targets:
        pen.rectangle(tuple(float(v) for v in box), outline=TARGET, width=line)
    picture = _fitted(picture, _WIDTH)
    small = [(text, _fitted(draw_heatmap(image, m), _WIDTH // 2)) for text, m in (maps or {}).items()]
    rows = -(-len(small) // 2)
    map_height = max((m.height for _, m in small), default=0) + _LINE + 6
    text = [expression, *([title] if title else [])]
    height = (
        len(text) * _LINE
        + 10
        + picture.height
        + 6
        + shown * (_BAR + 4)
        + 6
        + len(outline) * _LINE
        + 6
        + rows * map_height
    )
    canvas = Image.new("RGB", (_WIDTH + 12, height), "white")
    draw, y = ImageDraw.Draw(canvas), 4
    for n, words in enumerate(text):
        _write(draw, (6, y), words, 12, _WIDTH, INK if n == 0 else (120, 120, 120))
        y += _LINE
    canvas.paste(picture, (6, y + 4))
    y += picture.height + 10
    _bars(draw, y, scores[:shown])
    y += shown * (_BAR + 4) + 6
    for words in outline:
        _write(draw, (6, y), words, 11, _WIDTH)
        y += _LINE
    shown = shown_labels([words for words, _ in small])
    for n, (words, drawn) in enumerate(small):
        left, top = 6 + (n % 2) * (_WIDTH // 2), y + 6 + (n // 2) * map_height
        _write(draw, (left, top), shown[words], 11, _WIDTH // 2 - 6)
        canvas.paste(drawn, (left, top + _LINE))
    return canvas


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    words: str,
    size: int,
    width: int,
    colour: tuple[int, int, int] = INK,
) -> None:
    """Write one line of a panel; indentation of the tree is kept."""
    indent = len(words) - len(words.lstrip())
    text = " " * indent + (shown_labels([words])[words] if words.strip() else "")
    face = font(size, text)
    draw.text(place, fitting(text, face, width), fill=colour, font=face)


def _bars(draw: ImageDraw.ImageDraw, y: float, scores: Sequence[float]) -> None:
    largest = max([*scores, 1e-12])
    for n, score in enumerate(scores):
        top = y + n * (_BAR + 4)
        length = max(1, round((_WIDTH - 90) * max(0.0, score) / largest))
        draw.text((6, top), str(n + 1), fill=INK, font=font(11))
        draw.rectangle((22, top + 1, 22 + length, top + _BAR - 2), fill=colour_of(n))
        draw.text((28 + length, top), f"{score:.3f}", fill=INK, font=font(11))


def _fitted(image: Image.Image, width: int) -> Image.Image:
    scale = width / image.width
    return image.resize((width, max(1, round(image.height * scale))), Image.Resampling.BICUBIC)


def sheet(panels: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """Panels in a grid on white.

    Raises:
        UserError: if there are no panels.
    """
    if not panels:
        raise UserError("There are no panels to draw.")
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    width = max(sum(p.width for p in row) for row in rows)
    canvas = Image.new("RGB", (width, sum(max(p.height for p in row) for row in rows)), "white")
    y = 0
    for row in rows:
        x = 0
        for panel in row:
            canvas.paste(panel, (x, y))
            x += panel.width
        y += max(p.height for p in row)
    return canvas
