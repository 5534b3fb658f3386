"""Contact sheet of toy world scenes, for visual inspection."""

from __future__ import annotations

import textwrap

from PIL import Image, ImageDraw, ImageFont

from smartclip_det.datasets.toy_world import ToyWorld
from smartclip_det.datasets.toy_world.language import expressions, long_caption, short_captions
from smartclip_det.visualization import draw_boxes


def contact_sheet(world: ToyWorld, count: int) -> Image.Image:
    """Draw validation scenes with boxes, captions and expressions."""
    cell, text_height, columns = 300, 190, 4
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * cell, rows * (cell + text_height)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for n in range(count):
        scene = world.scene("val", n)
        picture = Image.fromarray(scene.image)
        scale = (cell - 10) / max(picture.size)
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.NEAREST
        )
        labels = [f"{o.colour} {o.shape}" for o in scene.objects]
        boxes = [[v * scale for v in o.box] for o in scene.objects]
        x, y = (n % columns) * cell + 5, (n // columns) * (cell + text_height)
        sheet.paste(draw_boxes(picture, boxes, labels, list(dict.fromkeys(labels))), (x, y + 5))
        long, short = long_caption(scene), short_captions(scene)
        texts = [
            f"LONG {long}",
            f"SHORT {short[0]}",
            *(f"{e.kind.upper()} {e.sentence} -> {len(e.targets)}" for e in expressions(scene)),
        ]
        lines = [line for text in texts for line in textwrap.wrap(text, 48)]
        draw.multiline_text((x, y + cell), "\n".join(lines[:13]), fill="black", font=font)
    return sheet
