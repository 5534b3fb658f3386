"""Mask analysis: use of dimensions, prefixes, set algebra, an atlas of words; written as an HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from smartclip_det.core.errors import UserError
from smartclip_det.core.prompts import fill
from smartclip_det.datasets.caption_policies import split_sentences
from smartclip_det.formats.captions import read_caption_records
from smartclip_det.models.towers import SmartCLIP
from smartclip_det.models.towers.source import load_towers
from smartclip_det.probing.mask_statistics import (
    algebra,
    containment,
    distinctive,
    jaccard,
    kind_overlap,
    occupancy,
    similarity_order,
)
from smartclip_det.protocols.stamp import protocol_stamp, write_results
from smartclip_det.utils.devices import resolve_device
from smartclip_det.visualization.report import ReportPage


@dataclass(frozen=True)
class MaskOptions:
    """Options of the mask analysis.

    Attributes:
        towers: tower config, see :func:`load_towers`.
        texts: words or short phrases.
        template: template that turns a word into a text.
        kinds: words by kind, e.g. ``colour`` and ``shape``, to measure the overlap of their masks.
        captions: caption file, any layout.
        limit: number of captions to read.
        pairs: word pairs for set algebra.
        seed: seed of the pairs.
        device: see :func:`resolve_device`.
        out: output folder for ``masks.html`` and ``masks.json``, or a ``.json`` path; the page then has the same name.
    """

    towers: Mapping[str, Any]
    texts: Sequence[str] = ()
    template: str = "{article} {}"
    kinds: Mapping[str, Sequence[str]] = field(default_factory=dict)
    captions: str | None = None
    limit: int = 1000
    pairs: int = 200
    seed: int = 0
    device: str = "auto"
    out: Path = Path("work_dirs/masks")


def analyse_masks(task: MaskOptions) -> tuple[Path, Path]:
    """Encode the texts, measure their masks, write the page and the JSON.

    Returns:
        Paths of the JSON and the page.

    Raises:
        UserError: without any texts, or for towers without a mask network.
    """
    if not task.texts and not task.captions and not task.kinds:
        raise UserError("Give at least one of --texts, --vocabulary, --kinds and --captions.")
    towers = load_towers(task.towers).to(resolve_device(task.device))
    if towers.mask_network is None:
        raise UserError(
            f"{task.towers.get('checkpoint') or task.towers.get('arch')} has no mask network. Use towers "
            "trained with masks."
        )
    page = ReportPage("Masks")
    page.text(
        f"Towers {towers.checkpoint_hash}, {towers.config.embed_dim} dimensions, mask_pad {towers.config.mask_pad}."
    )
    metrics: dict[str, Any] = {}
    if task.texts:
        metrics.update(of_words(towers, task, page))
    if task.kinds:
        metrics["kinds"] = of_kinds(towers, task, page)
    if task.captions:
        metrics.update(of_captions(towers, task, page))
    stamp = protocol_stamp(
        "masks",
        **towers.provenance(),
        template=task.template,
        pairs=task.pairs,
        seed=task.seed,
        captions=task.captions,
        limit=task.limit,
    )
    # ``out`` may name the JSON file, or a folder for both files.
    results = task.out if task.out.suffix == ".json" else task.out / "masks.json"
    page.write(results.with_suffix(".html"))
    return write_results(results, stamp, metrics), results.with_suffix(".html")


def masks_of(towers: SmartCLIP, texts: list[str], what: str, batch: int = 64) -> Tensor:
    """``[K, D]`` hard masks on the CPU; texts longer than the context are truncated."""
    unique = list(dict.fromkeys(texts))
    parts = [
        towers.encode_text(unique[n : n + batch], truncate=True).masks.cpu()
        for n in tqdm(range(0, len(unique), batch), desc=what, unit="batch")
    ]
    row = {t: n for n, t in enumerate(unique)}
    return torch.cat(parts)[[row[t] for t in texts]]


def of_words(towers: SmartCLIP, task: MaskOptions, page: ReportPage) -> dict[str, Any]:
    """Measure occupancy, set algebra and atlas of words."""
    words = list(task.texts)
    masks = masks_of(towers, [fill(task.template, w) for w in words], "words")
    metrics = {"words": occupancy(masks).facts()}
    show_occupancy(page, f"{len(words)} words", masks)
    if len(words) >= 3:
        metrics["algebra"] = set_algebra(towers, words, masks, task)
        page.heading("Set algebra")
        page.text(
            "Masks of joined texts against the union of their masks, and intersections of joined texts against the "
            "mask of the shared word (Jaccard; chance: independent masks of equal density)."
        )
        page.table(
            ["", "Jaccard", "chance"],
            [[k, metrics["algebra"][k], metrics["algebra"][f"{k}_chance"]] for k in ("union", "intersection")],
        )
    page.heading("Atlas")
    order = similarity_order(masks)
    page.picture(
        stripes(masks[order], masks.mean(dim=0).argsort(descending=True)),
        "Rows: words, similar masks together. Columns: dimensions, most used first. Dark: kept by the mask.",
    )
    page.table(["word", "nearest masks", "Jaccard", "density"], neighbours(words, masks, order))
    page.table(
        ["dimension", "kept by", "words that keep it"],
        [[str(d), f, ", ".join(names)] for d, f, names in distinctive(masks, words, 12)],
    )
    return metrics


def of_kinds(towers: SmartCLIP, task: MaskOptions, page: ReportPage) -> dict[str, float]:
    """Measure occupancy of words of all kinds, and mask overlap within and across kinds."""
    words = [(kind, word) for kind, mine in task.kinds.items() for word in mine]
    masks = masks_of(towers, [fill(task.template, w) for _, w in words], "kinds")
    show_occupancy(page, f"{len(words)} words of {len(task.kinds)} kinds", masks)
    overlap = kind_overlap(masks, [k for k, _ in words])
    page.heading("Kinds")
    page.text("Jaccard index of the masks of two different words, of the same kind and of different kinds.")
    page.table(["pairs", "Jaccard"], [[k.replace("_", " "), v] for k, v in overlap.items()])
    return {**occupancy(masks).facts(), **{f"overlap_{k}": v for k, v in overlap.items()}}


def set_algebra(towers: SmartCLIP, words: list[str], masks: Tensor, task: MaskOptions) -> dict[str, float]:
    """Compare unions and intersections over random triples of words."""
    rng = np.random.default_rng(task.seed)
    triples = [rng.choice(len(words), 3, replace=False) for _ in range(task.pairs)]
    text = [fill(task.template, w) for w in words]
    joined = masks_of(towers, [f"{text[a]} and {text[b]}" for a, b, _ in triples], "joined")
    elsewhere = masks_of(towers, [f"{text[a]} and {text[c]}" for a, _, c in triples], "joined")
    rows = np.array(triples)
    return algebra(masks[rows[:, 0]], masks[rows[:, 1]], joined, elsewhere)


def of_captions(towers: SmartCLIP, task: MaskOptions, page: ReportPage) -> dict[str, Any]:
    """Measure occupancy of captions, and how masks grow with caption prefixes."""
    records, counts = read_caption_records(task.captions)
    print(counts.summary(str(task.captions), len(records)))
    captions = [r.long or r.short[0] for r in records[: task.limit]]
    masks = masks_of(towers, captions, "captions")
    metrics: dict[str, Any] = {"captions": occupancy(masks).facts()}
    show_occupancy(page, f"{len(captions)} captions", masks)
    several = [n for n, c in enumerate(captions) if len(split_sentences(c)) > 1]
    if several:
        shares: dict[str, tuple[list[float], list[float]]] = {"contained": ([], []), "density": ([], [])}
        for step in range(1, 6):
            cut = [opening(captions[n], step / 5) for n in several]
            parts = masks_of(towers, cut, f"prefix {step}/5")
            for name, value in (("contained", containment(parts, masks[several])), ("density", parts.mean(dim=1))):
                shares[name][0].append(step / 5)
                shares[name][1].append(float(value.mean()))
        metrics["prefix_containment"] = dict(zip(map(str, shares["contained"][0]), shares["contained"][1], strict=True))
        metrics["prefix_containment_chance"] = float(masks[several].mean())
        page.heading("Prefixes")
        page.curves(
            shares,
            "share of sentences",
            "share of dimensions",
            f"{len(several)} captions with several sentences. contained: fraction of the dimensions in the "
            "prefix's mask "
            f"that the full caption's mask keeps (chance {metrics['prefix_containment_chance']:.2f}).",
        )
    return metrics


def opening(caption: str, share: float) -> str:
    """Return the first sentences of a caption, at least one."""
    sentences = split_sentences(caption)
    return ". ".join(sentences[: max(1, round(share * len(sentences)))])


def show_occupancy(page: ReportPage, what: str, masks: Tensor) -> None:
    """Add statistics, densities and frequencies of one set of masks to the page."""
    use = occupancy(masks)
    page.heading(f"Occupancy of {what}")
    page.table(list(use.facts()), [list(use.facts().values())])
    ranked = use.frequency.sort(descending=True).values.tolist()
    page.curves(
        {
            "frequency": (list(range(len(ranked))), ranked),
            "density of texts": (
                np.linspace(0, len(ranked), len(use.density)).tolist(),
                use.density.sort(descending=True).values.tolist(),
            ),
        },
        "rank (dimensions; texts stretched over them)",
        "share",
    )


def neighbours(words: list[str], masks: Tensor, order: list[int]) -> list[list[str | float | None]]:
    """List each word with the words of the most similar masks, the best Jaccard index, and its density."""
    rows: list[list[str | float | None]] = []
    for n in order[:200]:
        similarity = jaccard(masks[n].expand_as(masks), masks)
        similarity[n] = -1
        best = similarity.argsort(descending=True)[:3].tolist()
        rows.append([words[n], ", ".join(words[b] for b in best), float(similarity[best[0]]), float(masks[n].mean())])
    return rows


def stripes(masks: Tensor, columns: Tensor) -> Image.Image:
    """Draw masks as an image, one stripe per text."""
    shown = 255 - (masks[:400, columns].numpy() * 200).astype(np.uint8)
    height = max(1, min(14, 700 // len(shown)))
    return Image.fromarray(np.repeat(shown, height, axis=0)).resize(
        (960, height * len(shown)), Image.Resampling.NEAREST
    )
