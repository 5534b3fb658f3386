"""Image-text retrieval with a named protocol: encode, score with and without masks, write stamped metrics.

    smartclip-det retrieve coco-5k --data data/coco --encoder smartclip_b16.pt
    smartclip-det retrieve urban1k --data data/Urban1k --encoder longclip-B.pt
    smartclip-det retrieve captions --data captions.json --images photos/ --encoder smartclip_b16.pt
    smartclip-det evaluate retrieval --ann captions.json --pred vectors.safetensors      # reproduces the metrics

Sets: coco-5k, flickr30k-full, flickr30k-31014, flickr30k-1k, urban1k, sharegpt4v-1k, sharegpt4v-1k-first, docci, dci,
long-dci, iiw; their sizes are checked. "captions" is any caption file, folder of pairs, or shards, with all texts of
each image or only the long or short ones (--texts); records of the same image are merged. Ties count against the model.
Texts longer than the context are truncated, as in published evaluations; the stamp counts them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import Old, add_encoder, add_out, add_square_images, encoder_source, filled
from smartclip_det.core.words import CAPTION_SETS, CAPTION_TEXTS
from smartclip_det.utils.cli import format_metrics

OLD = (Old("--checkpoint", "--encoder"),)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add("set", choices=[*CAPTION_SETS, "captions"], help="retrieval set")
    add("--data", type=Path, required=True, help="folder of the set; for captions, file or folder")
    add("--images", type=Path, help="captions: root folder of the image paths")
    add("--texts", choices=CAPTION_TEXTS, default="all", help="captions: which texts of an image to use")
    add("--partial", action="store_true", help="accept an incomplete set; recorded in the stamp")
    add_encoder(parser)
    add("--stretch", action="store_true", help="stretch 77 text positions to 248")
    add_square_images(parser, "images, and texts,")
    add("--vectors", type=Path, help="also write the embeddings, .safetensors")
    add_out(parser, None, "metrics JSON; default work_dirs/retrieval_SET.json")


def run(args: argparse.Namespace) -> None:
    """Measure, print the metrics and the output paths."""
    from smartclip_det.apis.retrieval import RetrieveOptions, retrieve

    out = args.out or Path(f"work_dirs/retrieval_{args.set}.json")
    towers = {**encoder_source(args), "stretch": args.stretch}
    metrics = retrieve(filled(RetrieveOptions, args, towers=towers, out=out))
    print(format_metrics(metrics))
    if args.vectors:
        print(f"written: {args.vectors}")
    print(f"written: {out}")
