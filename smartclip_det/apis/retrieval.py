"""Image-text retrieval with a named protocol: encode images and texts, compute recalls."""

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
    """Options of retrieval.

    Attributes:
        set: a protocol of :mod:`smartclip_det.formats.caption_sets`, or ``captions``.
        data: folder of the set; for ``captions`` a caption file or a folder of pairs.
        towers: tower config, see :func:`load_towers`.
        images: for ``captions``: root folder of the image paths.
        texts: for ``captions``: which texts of an image to use: ``all``, ``long`` or ``short``.
        partial: accept an incomplete set; recorded in the stamp.
        fit: how images are made square.
        batch_size: images, and texts, per batch.
        workers: data loader workers.
        device: see :func:`resolve_device`.
        vectors: output file for the embeddings, ``.safetensors``; None: not written.
        out: metrics JSON; None: not written.
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
    """Encode, score with and without masks, and write the requested files.

    Raises:
        UserError: for a set whose size differs from the published one, missing images, or unreadable files.
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
    """Load the images of the set, and the facts about them for the stamp."""
    data = Path(options.data)
    if options.set != "captions":
        return load_protocol(options.set, data, partial=options.partial)
    return load_captions(data, options.images, options.texts, print)


@torch.no_grad()
def encode(towers: SmartCLIP, images: list[CaptionedImage], options: RetrieveOptions) -> RetrievalVectors:
    """Encode all images and texts; fp32 vectors on the CPU."""
    absent = [i.path for i in images if isinstance(i.path, Path) and not i.path.is_file()]
    if absent:
        raise UserError(f"{len(absent)} of {len(images)} images do not exist, e.g. {absent[0]}.")
    device, size = towers.logit_scale.device, options.batch_size
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in towers.image_statistics())
    squares = SquareImages([partial(open_source, i.path) for i in images], towers.config.image_size, options.fit)
    loader = squares.batches(size, options.workers)
    count = math.ceil(len(squares) / size)
    image_embeds = [
        towers.encode_image((batch.to(device).float() / 255 - mean) / std).float().cpu()
        for batch in tqdm(loader, desc="images", unit="batch", total=count)
    ]
    sentences = [t for i in images for t in i.texts]
    embeds, masks, truncated = [], [], 0
    for n in tqdm(range(0, len(sentences), size), desc="texts", unit="batch"):
        output = encode_texts(towers, sentences[n : n + size], truncate=True, chunks=2)
        truncated += int((output.tokens.argmax(dim=1) == towers.config.context_length - 1).sum())
        embeds.append(output.embeds.cpu())
        if output.has_masks:
            masks.append(output.masks.cpu())
    owner = torch.tensor([n for n, i in enumerate(images) for _ in i.texts])
    stamp = {**towers.provenance(), "fit": options.fit, "texts_at_limit": truncated}
    return RetrievalVectors(
        torch.cat(image_embeds),
        torch.cat(embeds),
        owner,
        torch.cat(masks) if masks else None,
        [i.id for i in images],
        sentences,
        stamp,
    )
