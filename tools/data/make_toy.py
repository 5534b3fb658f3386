#!/usr/bin/env python
"""Generate the toy world: scenes of drawn shapes in COCO, LVIS, RefCOCO-family and caption formats.

    python tools/data/make_toy.py --out data/toy
    python tools/data/make_toy.py --out /tmp/toy --train 200 --val 40 --test 20 --seed 3

The same seed gives the same bytes of annotation. A contact sheet with boxes, captions and expressions is drawn to be
looked at.
"""

from __future__ import annotations

import argparse
import textwrap
import time
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from smartclip_det.datasets.toy_world import ToyWorld, WorldConfig, write_world
from smartclip_det.datasets.toy_world.language import expressions, long_caption, short_captions
from smartclip_det.utils.cli import run_tool
from smartclip_det.visualization import draw_boxes


def parse_args() -> argparse.Namespace:
    """The command line."""
    default = WorldConfig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--train", type=int, default=default.train, help="training images")
    parser.add_argument("--val", type=int, default=default.val, help="validation images")
    parser.add_argument("--test", type=int, default=default.test, help="images of each of testA and testB")
    parser.add_argument("--side", type=int, default=default.side, help="nominal side in pixels")
    return parser.parse_args()


def main() -> None:
    """Write the world and its contact sheet."""
    args = parse_args()
    world = ToyWorld(WorldConfig(seed=args.seed, train=args.train, val=args.val, test=args.test, side=args.side))
    start = time.perf_counter()
    facts = write_world(world, args.out)
    contact_sheet(world, min(12, args.val)).save(args.out / "contact_sheet.png")
    images, objects = (sum(facts[k].values()) for k in ("images", "objects"))
    print(f"{images} images, {objects} objects in {time.perf_counter() - start:.0f} s")
    print(f"held out from training: {', '.join(facts['held_out'])}")
    print(f"written: {args.out} (look at {args.out / 'contact_sheet.png'})")


def contact_sheet(world: ToyWorld, count: int) -> Image.Image:
    """Validation scenes with boxes, masks' outlines by box, captions and expressions."""
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
        said = [
            f"LONG {long}",
            f"SHORT {short[0]}",
            *(f"{e.kind.upper()} {e.sentence} -> {len(e.targets)}" for e in expressions(scene)),
        ]
        lines = [line for text in said for line in textwrap.wrap(text, 48)]
        draw.multiline_text((x, y + cell), "\n".join(lines[:13]), fill="black", font=font)
    return sheet


if __name__ == "__main__":
    run_tool(main)
