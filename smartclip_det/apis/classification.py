"""Zero-shot classification of labelled images: without masks, with masks, and with both mask controls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from smartclip_det.core.mask_modes import RETRIEVAL_MODES
from smartclip_det.core.similarity import masked_cosine, resolve_masks
from smartclip_det.formats.class_names import distinct_names
from smartclip_det.formats.labelled_images import read_labelled
from smartclip_det.metrics.classification import accuracies
from smartclip_det.models.towers.source import load_towers
from smartclip_det.models.vocabulary import build_bank, default_cache_dir
from smartclip_det.protocols.stamp import protocol_stamp, write_results
from smartclip_det.utils.devices import resolve_device
from smartclip_det.utils.images import SquareImages


@dataclass(frozen=True)
class ClassifyOptions:
    """Options of zero-shot classification.

    Attributes:
        folder: ``CLASS/IMAGE``, or CIFAR binary files.
        towers: tower config, see :func:`load_towers`.
        names: class names of the folders: text, json or csv, synonyms are averaged; None: the folder names.
        templates: name of a template set.
        fit: how images are made square.
        batch_size: images per batch.
        workers: data loader workers.
        device: see :func:`resolve_device`.
        out: metrics JSON; None: not written.
    """

    folder: Path
    towers: Mapping[str, Any]
    names: str | None = None
    templates: str = "clip_80"
    fit: str = "crop"
    batch_size: int = 64
    workers: int = 4
    device: str = "auto"
    out: Path | None = None


@dataclass
class ClassifyResult:
    """Result of zero-shot classification.

    Attributes:
        metrics: accuracy per scoring mode.
        repeated: number of classes that share a name with an earlier class; the first one is predicted, as published.
    """

    metrics: dict[str, float]
    repeated: int


def columns_of(names: list[tuple[str, ...]]) -> tuple[Tensor, Tensor]:
    """Return ``[C]`` row of each class among the distinct names, and ``[C]`` True for classes that repeat a name."""
    row = {n: k for k, n in enumerate(dict.fromkeys(names))}
    first = {n: c for c, n in reversed(list(enumerate(names)))}
    return torch.tensor([row[n] for n in names]), torch.tensor([first[n] != c for c, n in enumerate(names)])


@torch.no_grad()
def classify(options: ClassifyOptions) -> ClassifyResult:
    """Encode, score and write the requested files.

    Raises:
        UserError: for a folder without labelled images, or names that do not match it.
    """
    data = read_labelled(options.folder, options.names)
    device = resolve_device(options.device)
    towers = load_towers(options.towers).to(device)
    print(data.summary(str(options.folder)))
    classes = distinct_names(data.all_names)
    bank = build_bank(
        towers,
        [c[0] for c in classes],
        synonyms={c[0]: c[1:] for c in classes if c[1:]},
        templates=options.templates,
        cache_dir=default_cache_dir(),
    )
    embeds, masks = bank.embeds.to(device), bank.masks.to(device)
    columns, repeated = columns_of(data.all_names)
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in towers.image_statistics())
    openers = [partial(data.open, n) for n in range(len(data.labels))]
    squares = SquareImages(openers, towers.config.image_size, options.fit)
    loader = squares.batches(options.batch_size, options.workers)
    count = math.ceil(len(squares) / options.batch_size)
    modes = RETRIEVAL_MODES if towers.mask_network is not None and len(bank) > 1 else ("off",)
    chosen = {mode: resolve_masks(masks, mode, bank.texts) for mode in modes}
    scores: dict[str, list[Tensor]] = {mode: [] for mode in modes}
    for batch in tqdm(loader, desc="images", unit="batch", total=count):
        vectors = towers.encode_image((batch.to(device).float() / 255 - mean) / std)
        for name, gates in chosen.items():
            scores[name].append(masked_cosine(vectors, embeds, gates).cpu())
    labels = torch.from_numpy(data.labels)
    metrics = {}
    for name, parts in scores.items():
        by_class = torch.cat(parts)[:, columns].masked_fill(repeated, float("-inf"))
        metrics.update({f"{k}_{name}": v for k, v in accuracies(by_class, labels).items()})
    if options.out:
        stamp = protocol_stamp(
            "classification",
            set=str(options.folder),
            images=len(labels),
            classes=len(data.names),
            **data.counts,
            ties="against",
            fit=options.fit,
            **bank.provenance,
        )
        write_results(options.out, stamp, metrics)
    return ClassifyResult(metrics, int(repeated.sum()))
