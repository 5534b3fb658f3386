"""Presence scoring for sentences without a target, compared at equal recall of sentences with a target.

Shape letters: S sentences, P vectors of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from smartclip_det.core.errors import UserError
from smartclip_det.core.presence import fit_sigmoid, presence_cosine, rising, weighed_presence
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.formats.candidates import candidates_of
from smartclip_det.formats.expressions.loading import load_expressions
from smartclip_det.formats.expressions.record import Expression
from smartclip_det.metrics.absent_names import none_accuracy, none_metric
from smartclip_det.metrics.bootstrap import paired_bootstrap
from smartclip_det.models.grounding.zero_shot import ZeroShotGrounder
from smartclip_det.models.regions import RegionEncoder
from smartclip_det.models.vocabulary import build_bank
from smartclip_det.utils.images import open_rgb


@dataclass
class ScoredSentences:
    """Scored sentences.

    Attributes:
        images: S image ids.
        target: ``[S]`` bool, whether the sentence has a target.
        evidence: ``[S]`` evidence of the best box, without presence.
        presence: per source, ``[S]`` presence cosines in the sentence's own image.
        elsewhere: per source, ``[S]`` presence cosines in another image, a control.
    """

    images: list[Any]
    target: np.ndarray
    evidence: Tensor
    presence: dict[str, Tensor]
    elsewhere: dict[str, Tensor]


def measure_grounding(
    expressions: Path,
    folder: Path,
    instances: str,
    encoder: RegionEncoder,
    policy: ScoringPolicy,
    *,
    sources: Sequence[str],
    powers: Sequence[float],
    scale: float | None,
    resamples: int,
    calibrates: Callable[[Any], bool],
    limit: int = 0,
) -> dict[str, dict[str, Any]]:
    """Evaluate without presence, with it, and with that of another image; with paired gains over no presence.

    Args:
        expressions: file of expressions, some without a target.
        folder: image folder.
        instances: COCO annotations whose boxes are the candidates.
        encoder: computes region and image vectors.
        policy: its ``dense_temperature`` weighs evidence against presence.
        sources: presence sources.
        powers: exponents of presence.
        scale: fixed scale, or None to fit it; see :func:`fit_sigmoid`.
        resamples: resamples of the bootstrap over images.
        calibrates: whether an image is used for calibration (and not evaluated).
        limit: use only the first N images; 0: all.
    """
    grounder = ZeroShotGrounder(encoder, policy=policy.with_(temperature=policy.dense_temperature))
    seen = score_sentences(load_expressions(expressions), folder, instances, grounder, sources, limit)
    first = np.array([calibrates(i) for i in seen.images])
    if first.all() or not first.any():
        raise UserError(
            f"{expressions} has sentences in one half of the images only. Use more images, or another --seed."
        )
    rest = ~first
    target, images = seen.target[rest], [i for i, r in zip(seen.images, rest, strict=True) if r]
    best = {"presence 0": seen.evidence}
    for s in sources:
        fitted = rising(
            fit_sigmoid(seen.presence[s][torch.from_numpy(first)], torch.from_numpy(seen.target[first]), scale)
        )
        for power in powers:
            raised = policy.with_(presence=power, presence_scale=fitted[0], presence_bias=fitted[1])
            for control, cosines in (("", seen.presence[s]), (", of another picture", seen.elsewhere[s])):
                weighed = seen.evidence + weighed_presence(cosines, raised) / grounder.policy.temperature
                best[f"{s}, presence {power:g}{control}"] = weighed
    rows = {k: none_accuracy(v[torch.from_numpy(rest)].numpy(), target) for k, v in best.items()}
    base, count = none_metric(best["presence 0"][torch.from_numpy(rest)].numpy(), target, images)
    out: dict[str, dict[str, Any]] = {}
    for k, row in rows.items():
        metric, _ = none_metric(best[k][torch.from_numpy(rest)].numpy(), target, images)
        intervals = paired_bootstrap(base, metric, count, resamples=resamples, progress=False)
        out[k] = {**row, "gain": {m: {n: v[n] for n in ("difference", "low", "high")} for m, v in intervals.items()}}
    return out


def score_sentences(
    wanted: Sequence[Expression],
    folder: Path,
    instances: str,
    grounder: ZeroShotGrounder,
    sources: Sequence[str],
    limit: int,
) -> ScoredSentences:
    """Compute evidence and presence of every sentence whose image has candidate boxes."""
    groups: dict[Any, list[Expression]] = {}
    for e in wanted:
        groups.setdefault(e.image_id, []).append(e)
    ids = list(groups)[:limit] if limit else list(groups)
    boxes = candidates_of("ground-truth", [e for i in ids for e in groups[i]], instances)
    ids = [i for i in ids if boxes[groups[i][0].id].boxes]
    encoder = grounder.encoders[0]
    texts = list(dict.fromkeys(e.sentence for i in ids for e in groups[i]))
    bank = build_bank(encoder.towers, texts, templates="none").to("cpu")
    pictures: list[dict[str, Tensor]] = []
    evidence = []
    for i in tqdm(ids, desc="sentences", unit="image"):
        group = groups[i]
        image = open_rgb(folder / group[0].file_name)
        regions = boxes[group[0].id].boxes
        vectors = grounder.region_vectors(image, regions)
        evidence.append(grounder.evidence(vectors, regions, [e.sentence for e in group], bank).amax(dim=1))
        pictures.append({s: encoder.picture(image, s) for s in sources})
    own: dict[str, list[Tensor]] = {s: [] for s in sources}
    other: dict[str, list[Tensor]] = {s: [] for s in sources}
    for n, i in enumerate(ids):
        part = bank.select(dict.fromkeys(e.sentence for e in groups[i]))
        column = [part.index_of(e.sentence) for e in groups[i]]
        for s in sources:
            own[s].append(presence_cosine(pictures[n][s], part, grounder.policy)[column])
            other[s].append(presence_cosine(pictures[(n + 1) % len(ids)][s], part, grounder.policy)[column])
    return ScoredSentences(
        [i for i in ids for _ in groups[i]],
        np.array([bool(e.boxes) for i in ids for e in groups[i]]),
        torch.cat(evidence),
        {s: torch.cat(v) for s, v in own.items()},
        {s: torch.cat(v) for s, v in other.items()},
    )
