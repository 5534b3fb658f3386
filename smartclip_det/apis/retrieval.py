"""Image-text retrieval by a named protocol: images and texts to vectors, vectors to recalls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from smartclip_det.core.errors import UserError
from smartclip_det.formats.caption_groups import open_source
from smartclip_det.formats.caption_sets import CaptionedImage, load_captions, load_protocol
from smartclip_det.formats.retrieval_vectors import RetrievalVectors
from smartclip_det.metrics.retrieval import modes_of, recall_metrics
from smartclip_det.models.towers import SmartCLIP
from smartclip_det.models.towers.source import load_towers
from smartclip_det.models.towers.text_encoding import encode_texts
from smartclip_det.protocols.stamp import protocol_stamp, write_results
from smartclip_det.utils.devices import resolve_device
from smartclip_det.utils.images import SquareImages


@dataclass(frozen=True)
class RetrieveOptions:
    """What is retrieved, with what.

    Attributes:
        set: a protocol of :mod:`smartclip_det.formats.caption_sets`, or ``captions``.
        data: folder of the set; for ``captions`` a caption file or a folder of pairs.
        towers: config of towers, see :func:`load_towers`.
        images: for ``captions``: folder that image paths are in.
        texts: for ``captions``: which of an image's texts are taken: ``all``, ``long`` or ``short``.
        partial: measure on what is there; the stamp says so.
        fit: how an image becomes a square.
        batch_size: images, and texts, of one pass.
        workers: processes that read images.
        device: see :func:`resolve_device`.
        vectors: file for the vectors, ``.safetensors``; None for none.
        out: JSON of the metrics; None writes nothing.
    """

    set: str
    data: Path
    towers: Mapping[str, Any]
    images: Path | None = None
    texts: str = "all"
    partial: bool = False
    fit: str = "crop"
    batch_size: int = 64
    workers: int = 4
    device: str = "auto"
    vectors: Path | None = None
    out: Path | None = None


def retrieve(options: RetrieveOptions) -> dict[str, float]:
    """Encode, score with and without masks, write what is asked for.

    Raises:
        UserError: for a set of another size than published, missing images, or unreadable files.
    """
    images, facts = captioned(options)
    towers = load_towers(options.towers).to(resolve_device(options.device))
    vectors = encode(towers, images, options)
    vectors.stamp = {**facts, **vectors.stamp}
    metrics = recall_metrics(vectors, modes_of(vectors), progress=True)
    if options.vectors:
        vectors.save(options.vectors)
    if options.out:
        write_results(options.out, protocol_stamp("retrieval", ties="against", **vectors.stamp), metrics)
    return metrics


def captioned(options: RetrieveOptions) -> tuple[list[CaptionedImage], dict[str, Any]]:
    """The images of the set, and what the stamp says of them."""
    data = Path(options.data)
    if options.set != "captions":
        return load_protocol(options.set, data, partial=options.partial)
    return load_captions(data, options.images, options.texts, print)


@torch.no_grad()
def encode(towers: SmartCLIP, images: list[CaptionedImage], options: RetrieveOptions) -> RetrievalVectors:
    """All vectors, fp32 on the CPU."""
    absent = [i.path for i in images if isinstance(i.path, Path) and not i.path.is_file()]
    if absent:
        raise UserError(f"{len(absent)} of {len(images)} images are not there, e.g. {absent[0]}.")
    device, size = towers.logit_scale.device, options.batch_size
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in towers.image_statistics())
    squares = SquareImages([partial(open_source, i.path) for i in images], towers.config.image_size, options.fit)
    loader = squares.batches(size, options.workers)
    count = math.ceil(len(squares) / size)
    seen = [
        towers.encode_image((batch.to(device).float() / 255 - mean) / std).float().cpu()
        for batch in tqdm(loader, desc="images", unit="batch", total=count)
    ]
    sentences = [t for i in images for t in i.texts]
    embeds, masks, cut = [], [], 0
    for n in tqdm(range(0, len(sentences), size), desc="texts", unit="batch"):
        found = encode_texts(towers, sentences[n : n + size], truncate=True, chunks=2)
        cut += int((found.tokens.argmax(dim=1) == towers.config.context_length - 1).sum())
        embeds.append(found.embeds.cpu())
        if found.has_masks:
            masks.append(found.masks.cpu())
    owner = torch.tensor([n for n, i in enumerate(images) for _ in i.texts])
    stamp = {**towers.provenance(), "fit": options.fit, "texts_at_limit": cut}
    return RetrievalVectors(
        torch.cat(seen),
        torch.cat(embeds),
        owner,
        torch.cat(masks) if masks else None,
        [i.id for i in images],
        sentences,
        stamp,
    )
