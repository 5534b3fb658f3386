"""Generate the toy world: scenes of drawn shapes in COCO, LVIS, RefCOCO-family and caption formats.

    smartclip-det data make-toy --out data/toy
    smartclip-det data make-toy --out /tmp/toy --train 200 --val 40 --test 20 --seed 3

The annotation files are byte-identical for the same seed. A contact sheet with boxes, captions and expressions is drawn
for inspection.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--train", type=int, default=20000, help="training images")
    parser.add_argument("--val", type=int, default=600, help="validation images")
    parser.add_argument("--test", type=int, default=300, help="images in each of testA and testB")
    parser.add_argument(
        "--held-out",
        type=int,
        default=36,
        help="number of the 180 colour-shape pairs that never occur in training images or captions",
    )
    parser.add_argument("--side", type=int, default=128, help="nominal image side in pixels")


def run(args: argparse.Namespace) -> None:
    """Write the toy world and its contact sheet."""
    from smartclip_det.datasets.toy_world import ToyWorld, WorldConfig, write_world
    from smartclip_det.studies.contact_sheet import contact_sheet

    world = ToyWorld(
        WorldConfig(
            seed=args.seed, train=args.train, val=args.val, test=args.test, side=args.side, held_out=args.held_out
        )
    )
    start = time.perf_counter()
    facts = write_world(world, args.out)
    contact_sheet(world, min(12, args.val)).save(args.out / "contact_sheet.png")
    images, objects = (sum(facts[k].values()) for k in ("images", "objects"))
    print(f"{images} images, {objects} objects in {time.perf_counter() - start:.0f} s")
    print(f"held out from training: {', '.join(facts['held_out']) or 'no pair'}")
    print(f"written: {args.out} (see {args.out / 'contact_sheet.png'})")
