"""Do masks find the concepts? A test-bed with known latents, where the theory's claims can be measured.

    smartclip-det study identifiability --seeds 3 --out work_dirs/identifiability.json
    smartclip-det study identifiability --seeds 3 --stress          # limited captions, dependence, noise, other D

Images are mixtures of 4 concepts (2 numbers each) and a style; a caption tells some of the concepts. SmartCLIP's loss
trains an image encoder, a text encoder and a mask network; CLIP's the same without masks. Measured, on images that
training did not see:

  own_block_r2     how well a concept is read off the dimensions that its own caption keeps (1: whole)
  other_block_r2   how well the other concepts are read off them (0: not at all)
  jaccard          masks of {a, b} and {a, c} share exactly the mask of {a} (arXiv 2507.22264, Theorem 4.3)
  partial          text-to-image recall@1 among 512 for captions that leave things out: SmartCLIP scored with masks
                   (hard) and without (off), and CLIP (clip)

A table, a picture beside the JSON, some minutes on a CPU.
"""

from __future__ import annotations

import argparse

from smartclip_det.cli.options import add_out


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add = parser.add_argument
    add("--seeds", type=int, default=3, help="worlds and starts: seeds 0 to N - 1")
    add("--stress", nargs="*", metavar="WORLD", help="harder worlds as well: all, or those named")
    add("--steps", type=int, default=2000, help="of training")
    add("--batch", type=int, default=512, help="pairs of a step")
    add("--scale", type=float, default=30.0, help="factor on cosines")
    add("--rows", type=int, default=2000, help="images that R2 is measured on; half of them to fit")
    add_out(parser, "work_dirs/identifiability.json", "JSON; a picture beside")


def run(args: argparse.Namespace) -> None:
    """Train, measure, say what was written."""
    from smartclip_det.studies.identifiability import STRESS, IdentifyOptions, identify

    stress = list(STRESS) if args.stress == [] else args.stress or []
    identify(IdentifyOptions(**{**vars(args), "stress": stress}))
    print(f"written: {args.out} and {args.out.with_suffix('.png')}")
