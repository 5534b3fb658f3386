"""Detection by description: D-cube's mAP over sentences (arXiv 2307.12813), FG-OVD's rank among hard negatives.

Shape letters: N annotations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.rules import BACKENDS, SCENARIOS
from smartclip_det.formats.annotations import GroundTruth
from smartclip_det.metrics.coco import evaluate_tables
from smartclip_det.utils.boxes import to_xyxy

#: Sentence lengths in words, grouped as in D-cube's tables.
LENGTHS = {"short": (1, 3), "middle": (4, 6), "long": (7, 9), "very_long": (10, 10**6)}


def dcube_metrics(
    truth: GroundTruth, results: Sequence[Mapping[str, Any]], scenario: str = SCENARIOS[0], backend: str = BACKENDS[0]
) -> tuple[dict[str, float], dict[str, float | None], dict[str, int]]:
    """COCO mAP whose classes are sentences (D-cube, arXiv 2307.12813).

    Args:
        truth: COCO annotations, one category per sentence; ``is_negative`` of a category marks descriptions of absence;
            ``sent_ids`` of an image lists the sentences of its scenario.
        results: COCO results.
        scenario: ``intra``: only the image's own sentences are scored; results for others are dropped and counted.
            ``inter``: all sentences on every image.
        backend: ``fast`` or ``reference``.

    Returns:
        ``full``, ``pres`` and ``abs`` where ``is_negative`` is given, and by length ``short`` ... ``very_long``; AP by
        sentence; counts.
    """
    check_choice("scenario", scenario, SCENARIOS)
    kept = list(results)
    if scenario == "intra":
        lacking = [i["id"] for i in truth.data["images"] if "sent_ids" not in i]
        if lacking:
            raise UserError(
                f"The intra scenario needs sent_ids of every image; {len(lacking)} have none, e.g. {lacking[0]!r}. "
                "To score all sentences on every image, use the inter scenario."
            )
        asked = {(i["id"], s) for i in truth.data["images"] for s in i["sent_ids"]}
        kept = [r for r in kept if (r["image_id"], r["category_id"]) in asked]
    per_class = evaluate_tables(truth, kept, backend=backend).class_ap()
    metrics = {"full": _mean(per_class.values())}
    categories = truth.data["categories"]
    if all("is_negative" in c for c in categories):
        for name, negative in (("pres", False), ("abs", True)):
            metrics[name] = _mean(per_class[c["name"]] for c in categories if bool(c["is_negative"]) == negative)
    for name, (low, high) in LENGTHS.items():
        metrics[name] = _mean(v for n, v in per_class.items() if low <= len(n.split()) <= high)
    counts = {"sentences": len(categories), "predictions": len(results), "not_asked": len(results) - len(kept)}
    return metrics, per_class, counts


def _mean(values: Any) -> float:
    found = [v for v in values if v is not None]
    return float(np.mean(found)) if found else -1.0


def fgovd_metrics(
    data: Mapping[str, Any], scores: Mapping[int, Mapping[int, float]], negatives: int = 0
) -> tuple[dict[str, float], dict[str, int]]:
    """Rank of each object's caption among its hard negatives, on its own box; ties rank the caption last.

    Args:
        data: output of ``formats.expressions.fgovd.load_fgovd``.
        scores: annotation id to caption (category) id to score.
        negatives: number of negatives per object, the first ones listed; 0 for all.

    Returns:
        ``top1``, ``mean_rank``, ``median_rank`` (1 is best), ``chance`` (top-1 of guessing); and counts.
    """
    ranks, chances = [], []
    for a in data["annotations"]:
        others = a["neg_category_ids"][: negatives or None]
        found = scores.get(a["id"])
        if found is None:
            raise UserError(f"Annotation {a['id']} has no scores.")
        lacking = [c for c in (a["category_id"], *others) if c not in found]
        if lacking:
            raise UserError(f"The scores of annotation {a['id']} do not include caption {lacking[0]}.")
        own = found[a["category_id"]]
        ranks.append(1 + sum(found[c] >= own for c in others))
        chances.append(1 / (1 + len(others)))
    if not ranks:
        raise UserError("The file has no annotations.")
    metrics = {
        "top1": float(np.mean(np.array(ranks) == 1)),
        "mean_rank": float(np.mean(ranks)),
        "median_rank": float(np.median(ranks)),
        "chance": float(np.mean(chances)),
    }
    return metrics, {"annotations": len(ranks)}


def fgovd_map(
    truth: GroundTruth,
    results: Sequence[Mapping[str, Any]],
    negatives: int = 0,
    nms: float = 0.5,
    backend: str = BACKENDS[0],
) -> tuple[dict[str, float], dict[str, float | None], dict[str, int]]:
    """COCO mAP over true captions, after NMS across the captions of an object.

    A hard negative that scores higher on the same box suppresses the true caption. Detections of captions that belong
    to no object of the image are dropped and counted.

    Args:
        truth: FG-OVD annotations.
        results: COCO results whose categories are captions.
        negatives: number of negatives per object, the first ones listed; 0 for all.
        nms: IoU threshold of the class-agnostic NMS.
        backend: ``fast`` or ``reference``.

    Returns:
        ``map`` (IoU 0.5:0.95); AP by caption; counts.
    """
    # Imported here because the import takes longer than scoring most files.
    import torch
    from torchvision.ops import nms as batch_nms

    asked: dict[Any, dict[int, set[int]]] = {}
    for a in truth.data["annotations"]:
        words = {a["category_id"], *a["neg_category_ids"][: negatives or None]}
        asked.setdefault(a["image_id"], {}).setdefault(a["category_id"], set()).update(words)
    by_image: dict[Any, list[Mapping[str, Any]]] = {}
    for r in results:
        by_image.setdefault(r["image_id"], []).append(r)
    kept: dict[int, Mapping[str, Any]] = {}
    foreign = 0
    for image_id, rows in by_image.items():
        vocabularies = asked.get(image_id, {})
        foreign += sum(not any(r["category_id"] in words for words in vocabularies.values()) for r in rows)
        for own, words in vocabularies.items():
            mine = [r for r in rows if r["category_id"] in words]
            if mine:
                corners = torch.tensor([to_xyxy(r["bbox"]) for r in mine])
                order = batch_nms(corners.float(), torch.tensor([float(r["score"]) for r in mine]), nms)
                # Only the object's own caption is kept; its negatives take part in NMS alone.
                kept.update({id(mine[i]): mine[i] for i in order.tolist() if mine[i]["category_id"] == own})
    per_class = evaluate_tables(truth, list(kept.values()), backend=backend).class_ap()
    counts = {"images": len(asked), "predictions": len(results), "not_asked": foreign, "kept": len(kept)}
    return {"map": _mean(per_class.values())}, per_class, counts
