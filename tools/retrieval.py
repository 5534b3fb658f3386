#!/usr/bin/env python
"""Image-text retrieval by a named protocol: encode, score with and without masks, write stamped numbers.

    python tools/retrieval.py coco-5k --data data/coco --checkpoint smartclip_b16.pt
    python tools/retrieval.py urban1k --data data/Urban1k --checkpoint longclip-B.pt --device cuda
    python tools/retrieval.py captions --data captions.json --images photos/ --checkpoint smartclip_b16.pt
    python tools/evaluate.py retrieval --ann captions.json --pred vectors.safetensors      # the same digits

Sets: coco-5k, flickr30k-full, flickr30k-31014, flickr30k-1k, urban1k, sharegpt4v-1k, sharegpt4v-1k-first, docci, dci,
long-dci, iiw; their sizes are checked. "captions" is any caption file, folder of pairs or shards: all texts of each
image, or the long or short ones (--texts); an image of several records is one image with their texts.
Equal scores count against the model. Texts over the context are cut, as in published
evaluations; the stamp counts them.
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from smartclip_det.core.errors import UserError
from smartclip_det.formats.caption_groups import TEXTS, open_source
from smartclip_det.formats.caption_sets import PROTOCOLS, CaptionedImage, load_captions, load_protocol
from smartclip_det.formats.retrieval_vectors import RetrievalVectors
from smartclip_det.metrics.retrieval import modes_of, recall_metrics
from smartclip_det.models.towers import SmartCLIP
from smartclip_det.models.towers.source import load_towers
from smartclip_det.protocols.stamp import protocol_stamp, write_results
from smartclip_det.utils.cli import format_metrics, run_tool
from smartclip_det.utils.images import FITS, SquareImages


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=[*PROTOCOLS, "captions"])
    parser.add_argument("--data", type=Path, required=True, help="folder of the set; captions: file or folder")
    parser.add_argument("--images", type=Path, help="captions: folder that image paths are in")
    parser.add_argument("--texts", choices=TEXTS, default="all", help="captions: which of an image's texts are taken")
    parser.add_argument("--partial", action="store_true", help="measure on what is there; the stamp says so")
    towers = parser.add_mutually_exclusive_group(required=True)
    towers.add_argument("--checkpoint", help="towers")
    towers.add_argument("--arch", help="a named architecture with random weights")
    parser.add_argument("--stretch", action="store_true", help="stretch 77 text positions to 248")
    parser.add_argument("--fit", choices=FITS, default="crop", help="how an image becomes a square")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--vectors", type=Path, help="also write the vectors, .safetensors")
    parser.add_argument("--out", type=Path, help="JSON; default: work_dirs/retrieval_SET.json")
    return parser.parse_args()


def main() -> None:
    """Encode, score, write."""
    args = parse_args()
    images, facts = captioned(args)
    towers = load_towers({"checkpoint": args.checkpoint, "arch": args.arch, "stretch": args.stretch}).to(args.device)
    vectors = encode(towers, images, args)
    vectors.stamp = {**facts, **vectors.stamp}
    metrics = recall_metrics(vectors, modes_of(vectors), progress=True)
    print(format_metrics(metrics))
    if args.vectors:
        print(f"written: {vectors.save(args.vectors)}")
    stamp = protocol_stamp("retrieval", ties="against", **vectors.stamp)
    print(f"written: {write_results(args.out or Path(f'work_dirs/retrieval_{args.set}.json'), stamp, metrics)}")


def captioned(args: argparse.Namespace) -> tuple[list[CaptionedImage], dict[str, Any]]:
    """The images of the set, and what the stamp says of them."""
    if args.set != "captions":
        return load_protocol(args.set, args.data, partial=args.partial)
    return load_captions(args.data, args.images, args.texts, print)


@torch.no_grad()
def encode(towers: SmartCLIP, images: list[CaptionedImage], args: argparse.Namespace) -> RetrievalVectors:
    """All vectors, fp32 on the CPU."""
    absent = [i.path for i in images if isinstance(i.path, Path) and not i.path.is_file()]
    if absent:
        raise UserError(f"{len(absent)} of {len(images)} images are not there, e.g. {absent[0]}.")
    mean, std = (torch.tensor(v, device=args.device).view(3, 1, 1) for v in towers.image_statistics())
    squares = SquareImages([partial(open_source, i.path) for i in images], towers.config.image_size, args.fit)
    loader = squares.batches(args.batch_size, args.workers)
    count = math.ceil(len(squares) / args.batch_size)
    seen = [towers.encode_image((batch.to(args.device).float() / 255 - mean) / std).float().cpu()
            for batch in tqdm(loader, desc="images", unit="batch", total=count)]  # fmt: skip
    sentences = [t for i in images for t in i.texts]
    embeds, logits, cut = [], [], 0
    for n in tqdm(range(0, len(sentences), args.batch_size), desc="texts", unit="batch"):
        tokens = towers.tokenize(sentences[n : n + args.batch_size], truncate=True).to(args.device)
        cut += int((tokens.argmax(dim=1) == towers.config.context_length - 1).sum())
        found = towers.forward_text_by_length(tokens, 2)
        embeds.append(found[0].float().cpu())
        if found[1] is not None:
            logits.append(found[1].float().cpu())
    masks = (torch.cat(logits) >= 0).float() if logits else None
    owner = torch.tensor([n for n, i in enumerate(images) for _ in i.texts])
    stamp = {**towers.provenance(), "fit": args.fit, "texts_at_limit": cut}
    return RetrievalVectors(torch.cat(seen), torch.cat(embeds), owner, masks, [i.id for i in images], sentences, stamp)


if __name__ == "__main__":
    run_tool(main)
