"""Do masks recover concepts? A test bed with known latents, where the claims of the theory can be measured.

    smartclip-det study identifiability --seeds 3 --out work_dirs/identifiability.json
    smartclip-det study identifiability --seeds 3 --stress          # few captions, dependence, noise, other D

Images are mixtures of 4 concepts (2 numbers each) and a style; a caption describes some of the concepts. SmartCLIP's
loss trains an image encoder, a text encoder and a mask network; CLIP's loss trains the same without masks. Measured on
held-out images:

  own_block_r2     how well a concept is predicted from the dimensions that its own caption keeps (1: perfectly)
  other_block_r2   how well the other concepts are predicted from them (0: not at all)
  jaccard          the masks of {a, b} and {a, c} should share exactly the mask of {a} (arXiv 2507.22264, Theorem 4.3)
  partial          text-to-image recall@1 among 512 for partial captions: SmartCLIP scored with masks (hard) and
                   without (off), and CLIP (clip)

Prints a table and draws a plot next to the JSON; takes some minutes on a CPU.
"""

from __future__ import annotations

import argparse

from smartclip_det.cli.options import add_out


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add("--seeds", type=int, default=3, help="number of seeds (worlds and initial weights)")
    add("--stress", nargs="*", metavar="WORLD", help="also run the harder worlds: all, or those named")
    add("--steps", type=int, default=2000, help="training steps")
    add("--batch", type=int, default=512, help="pairs per step")
    add("--scale", type=float, default=30.0, help="logit scale")
    add("--rows", type=int, default=2000, help="images for R2; half of them are used to fit the regression")
    add_out(parser, "work_dirs/identifiability.json", "JSON output; a .png of the same name is drawn")


def run(args: argparse.Namespace) -> None:
    """Train, measure and print the output paths."""
    from smartclip_det.studies.identifiability import STRESS, IdentifyOptions, identify

    stress = list(STRESS) if args.stress == [] else args.stress or []
    identify(IdentifyOptions(**{**vars(args), "stress": stress}))
    print(f"written: {args.out} and {args.out.with_suffix('.png')}")
