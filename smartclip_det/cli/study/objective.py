"""Do masks help through the objective alone? Images are lists of objects, captions are partial, no pixels involved.

    smartclip-det study objective --seeds 2                               # CLIP and masks
    smartclip-det study objective --seeds 2 --recipes masks open rate-x3  # variants by name
    smartclip-det study objective --recipes                               # all of them

Uses the toy world's shapes, colours, sizes and textures; captions grow as in its one-stage configs. SmartCLIP's and
CLIP's losses train the same deep sets for the same number of steps, on the same captions in the same order. Measured on
new images of all pairs: average precision over all matching images for shapes, for colour + shape, for held-out pairs
and for partial captions, with the text's own mask (hard), without masks (off) and with both controls (random,
shuffled); and how often an image with the pair scores above one with colour and shape on different objects (AUC
unbound). Takes about a minute per recipe and seed on one CPU thread.
"""

from __future__ import annotations

import argparse

from smartclip_det.cli.options import add_out, at_least


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add(
        "--recipes",
        nargs="*",
        default=["clip", "masks"],
        metavar="NAME",
        help="recipes to train; default clip masks; without a name, all",
    )
    add("--seeds", type=at_least(1), default=2, help="number of seeds (worlds and initial weights)")
    add("--steps", type=at_least(2), default=2000, help="training steps")
    add("--batch", type=at_least(2), default=128, help="images per step, with two captions each")
    add("--held-out", type=at_least(1), default=36, help="held-out colour-shape pairs")
    add("--pictures", type=at_least(600), default=2000, help="evaluation images; captions are evaluated on 600 of them")
    add_out(parser, "work_dirs/objective.json", "JSON output")


def run(args: argparse.Namespace) -> None:
    """Train, measure and print the output path."""
    from smartclip_det.studies.objective import RECIPES, ObjectiveOptions, compare

    compare(ObjectiveOptions(**{**vars(args), "recipes": args.recipes or list(RECIPES)}))
    print(f"written: {args.out}")
