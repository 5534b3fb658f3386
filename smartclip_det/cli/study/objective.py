"""Do masks pay by the objective alone? Pictures as lists of objects, captions that leave things out, no pixels.

    smartclip-det study objective --seeds 2                               # CLIP and masks
    smartclip-det study objective --seeds 2 --recipes masks open rate-x3  # variants, by name
    smartclip-det study objective --recipes                               # all of them

The toy world's shapes, colours, sizes and textures; captions grow as in its one-stage configs. SmartCLIP's loss and
CLIP's train the same deep sets for equal steps on the same captions in the same order. Measured, on new pictures of
all pairs: average precision over all true pictures, of shapes, of colour + shape, of pairs that training never showed,
and of partial captions; under the text's own mask (hard), without (off), and both controls (random, shuffled). And how
often a picture of the pair scores above one that has colour and shape on different objects (AUC unbound).

About a minute a recipe and seed on one CPU thread.
"""

from __future__ import annotations

import argparse

from smartclip_det.cli.options import add_out, at_least


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add = parser.add_argument
    add(
        "--recipes",
        nargs="*",
        default=["clip", "masks"],
        metavar="NAME",
        help="what is trained: those named, default clip masks; without a name all",
    )
    add("--seeds", type=at_least(1), default=2, help="worlds and starts: seeds 0 to N - 1")
    add("--steps", type=at_least(2), default=2000, help="of training")
    add("--batch", type=at_least(2), default=128, help="pictures of a step, with two captions each")
    add("--held-out", type=at_least(1), default=36, help="colour-shape pairs that training never shows")
    add("--pictures", type=at_least(600), default=2000, help="that presence is measured on; captions on 600 of them")
    add_out(parser, "work_dirs/objective.json", "JSON")


def run(args: argparse.Namespace) -> None:
    """Train, measure, say what was written."""
    from smartclip_det.studies.objective import RECIPES, ObjectiveOptions, compare

    compare(ObjectiveOptions(**{**vars(args), "recipes": args.recipes or list(RECIPES)}))
    print(f"written: {args.out}")
