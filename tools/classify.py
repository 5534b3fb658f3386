#!/usr/bin/env python
"""Zero-shot classification of a folder of class folders (ImageNet's layout), or of CIFAR's binary files.

    python tools/classify.py data/imagenet/val --names imagenet_names.txt --checkpoint smartclip_b16.pt
    python tools/classify.py data/cifar-100-binary --checkpoint smartclip_b16.pt --templates clip_80
    python tools/classify.py photos/ --checkpoint smartclip_b16.pt --device cuda

Scored plain (as published) and, for towers with a mask network, with masks and both controls.
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from smartclip_det.core.mask_modes import RETRIEVAL_MODES
from smartclip_det.core.prompts import TEMPLATE_SETS
from smartclip_det.core.similarity import masked_cosine, resolve_masks
from smartclip_det.formats.class_names import distinct_names
from smartclip_det.formats.labelled_images import read_labelled
from smartclip_det.metrics.classification import accuracies
from smartclip_det.models.towers.source import load_towers
from smartclip_det.models.vocabulary import build_bank, default_cache_dir
from smartclip_det.protocols.stamp import protocol_stamp, write_results
from smartclip_det.utils.cli import format_metrics, run_tool
from smartclip_det.utils.images import FITS, SquareImages


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="CLASS/IMAGE, or CIFAR binary files")
    parser.add_argument("--names", help="names of the folders: text, json or csv; synonyms are averaged")
    towers = parser.add_mutually_exclusive_group(required=True)
    towers.add_argument("--checkpoint", help="towers")
    towers.add_argument("--arch", help="a named architecture with random weights")
    parser.add_argument("--templates", default="clip_80", choices=TEMPLATE_SETS)
    parser.add_argument("--fit", choices=FITS, default="crop", help="how an image becomes a square")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON; default: work_dirs/classify_FOLDER.json")
    return parser.parse_args()


def columns_of(names: list[tuple[str, ...]]) -> tuple[Tensor, Tensor]:
    """``[C]`` row of each class among the different names, and ``[C]`` True for classes that repeat a name."""
    row = {n: k for k, n in enumerate(dict.fromkeys(names))}
    first = {n: c for c, n in reversed(list(enumerate(names)))}
    return torch.tensor([row[n] for n in names]), torch.tensor([first[n] != c for c, n in enumerate(names)])


@torch.no_grad()
def main() -> None:
    """Encode, score, write."""
    args = parse_args()
    data = read_labelled(args.folder, args.names)
    towers = load_towers({"checkpoint": args.checkpoint, "arch": args.arch}).to(args.device)
    print(data.summary(str(args.folder)))
    classes = distinct_names(data.all_names)
    bank = build_bank(towers, [c[0] for c in classes], synonyms={c[0]: c[1:] for c in classes if c[1:]},
                      templates=args.templates, cache_dir=default_cache_dir())  # fmt: skip
    embeds, masks = bank.embeds.to(args.device), bank.masks.to(args.device)
    columns, repeated = columns_of(data.all_names)
    mean, std = (torch.tensor(v, device=args.device).view(3, 1, 1) for v in towers.image_statistics())
    openers = [partial(data.open, n) for n in range(len(data.labels))]
    squares = SquareImages(openers, towers.config.image_size, args.fit)
    loader = squares.batches(args.batch_size, args.workers)
    count = math.ceil(len(squares) / args.batch_size)
    modes = RETRIEVAL_MODES if towers.mask_network is not None and len(bank) > 1 else ("off",)
    chosen = {mode: resolve_masks(masks, mode, bank.texts) for mode in modes}
    scores: dict[str, list[Tensor]] = {mode: [] for mode in modes}
    for batch in tqdm(loader, desc="images", unit="batch", total=count):
        vectors = towers.encode_image((batch.to(args.device).float() / 255 - mean) / std)
        for name, gates in chosen.items():
            scores[name].append(masked_cosine(vectors, embeds, gates).cpu())
    labels = torch.from_numpy(data.labels)
    metrics = {}
    for name, parts in scores.items():
        by_class = torch.cat(parts)[:, columns].masked_fill(repeated, float("-inf"))
        metrics.update({f"{k}_{name}": v for k, v in accuracies(by_class, labels).items()})
    if repeated.any():
        print(
            f"note: {int(repeated.sum())} classes repeat another's name; as published, the first of them is answered."
        )
    print(format_metrics(metrics))
    stamp = protocol_stamp("classification", set=str(args.folder), images=len(labels), classes=len(data.names),
                           **data.counts, ties="against", fit=args.fit, **bank.provenance)  # fmt: skip
    out = args.out or Path(f"work_dirs/classify_{args.folder.resolve().name}.json")
    print(f"written: {write_results(out, stamp, metrics)}")


if __name__ == "__main__":
    run_tool(main)
