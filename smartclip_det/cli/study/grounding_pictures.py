r"""Draw a sheet of grounding predictions; by default the worst misses, i.e. wrong predictions with the highest scores.

    smartclip-det study grounding-pictures --ann refs.jsonl --pred pred.jsonl --images train2014
    smartclip-det study grounding-pictures --ann refs.jsonl --pred pred.jsonl --images train2014 --pick random \
        --encoder smartclip_b16.pt --dense-size 640          # with a similarity map for each text of the tree

Each panel shows the five best boxes, numbered, a bar per score, the target in green, and the parse of the expression.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import Old, add_device, add_out
from smartclip_det.core.mask_modes import MASK_MODES

OLD = (Old("--checkpoint", "--encoder"),)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add("--ann", required=True, help="expressions")
    add("--split", help="split to use")
    add("--pred", required=True, help="JSON lines of predictions")
    add("--images", type=Path, required=True, help="image folder")
    add(
        "--pick",
        choices=["worst", "best", "random"],
        default="worst",
        help="worst: wrong predictions with the highest scores",
    )
    add("--count", type=int, default=12, help="number of panels")
    add("--columns", type=int, default=4, help="columns of the sheet")
    add("--encoder", help="towers, for similarity maps: a file or a name")
    add("--dense-size", type=int, default=0, help="side of the dense input; 0: the tower's input size")
    add("--mask-mode", default="hard", choices=MASK_MODES, help="mask mode of the maps")
    add("--seed", type=int, default=0, help="seed of --pick random")
    add_device(parser)
    add_out(parser, "work_dirs/grounding.png", "output image")


def run(args: argparse.Namespace) -> None:
    """Draw the sheet and print what it shows."""
    from smartclip_det.studies.grounding_pictures import GroundingPicturesOptions, draw_groundings

    panels, sentences = draw_groundings(GroundingPicturesOptions(**vars(args)))
    print(f"{panels} of {sentences} sentences ({args.pick}): {args.out}")
