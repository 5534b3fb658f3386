"""Measurements of a toy run: metrics from its result files, and intervals of the differences that the report states."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smartclip_det.apis.toy_run import TOY_TEMPLATE
from smartclip_det.core.errors import UserError
from smartclip_det.core.mask_modes import RETRIEVAL_MODES, current_names
from smartclip_det.core.similarity import masked_cosine, resolve_masks
from smartclip_det.formats.annotations import GroundTruth, load_ground_truth
from smartclip_det.formats.expressions.loading import load_expressions
from smartclip_det.formats.expressions.predictions import load_grounding_predictions
from smartclip_det.formats.expressions.record import Expression, GroundedBoxes
from smartclip_det.formats.json_files import read_json
from smartclip_det.metrics.bootstrap import Metric, paired_bootstrap, referring_metric
from smartclip_det.metrics.referring import score_referring, single_targets
from smartclip_det.models.towers.source import load_encoder
from smartclip_det.models.vocabulary import build_bank
from smartclip_det.protocols.registry import compare
from smartclip_det.studies.toy import GROUNDING_MODES, HEAD_MODES, TESTS
from smartclip_det.utils.images import fit_square, open_rgb, pixels

IMAGE_SIDE = 64
#: Bootstrap resamples per interval, enough for two significant digits.
DRAWS = 300
ALIGNMENT = ("map_shape", "map_colour_shape", "map_colour_shape_held_out")
AP50 = ("base_ap50", "novel_ap50", "all_ap50")


@dataclass(frozen=True)
class Gap:
    """A difference on the same images, with its 95 % interval (paired bootstrap over images).

    Attributes:
        value: first minus second.
        low: lower end of the interval.
        high: upper end.
    """

    value: float
    low: float
    high: float

    @property
    def above(self) -> bool:
        """Whether the first is significantly better."""
        return self.low > 0

    @property
    def below(self) -> bool:
        """Whether the first is significantly worse."""
        return self.high < 0

    @staticmethod
    def of(first: Metric, second: Metric, pictures: int, name: str, draws: int = DRAWS) -> Gap:
        """Compute the gap of one metric between two runs."""
        result = paired_bootstrap(second, first, pictures, resamples=draws, progress=False)[name]
        return Gap(result["difference"], result["low"], result["high"])


def build_summary(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Collect all measurements, under the names used in the documentation.

    Raises:
        UserError: for a missing result file, or a required number that was not measured.
    """
    data = Path(facts["data"])
    probes = {n: metrics_of(folder / f"probe_{n}.json") for n in ("clip", "smartclip", "random")}
    summary = {
        "alignment": {n: alignment_numbers(metrics_of(folder / f"{n}.metrics.json")) for n in ("clip", "smartclip")},
        "region_probe": {
            g: {**probes["smartclip"][g], "dense": probes["smartclip"][g]["dense_value"]} for g in ("base", "novel")
        },
        "region_probe_by_towers": probes,
        "detection": detection_numbers(folder),
        "grounding": grounding_numbers(folder, data),
        "gaps": {k: asdict(g) for k, g in gaps(folder, data, facts["towers"]).items()},
        "seconds": facts["seconds"],
        "seed": facts["seed"],
        "versions": read_json(folder / "clip.metrics.json", "result file")["protocol"]["versions"],
    }
    check_complete(summary, REQUIRED)
    return summary


def metrics_of(path: Path) -> dict[str, Any]:
    """Read the metrics of a stamped result file."""
    metrics = read_json(path, "result file").get("metrics")
    if not isinstance(metrics, dict):
        raise UserError(f"{path} has no metrics.")
    return current_names(metrics)


def alignment_numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    """Select presence, caption and mask metrics for all mask modes."""
    kinds = ("map_", "auc_", "t2i_", "mask_")
    return {k: v for k, v in metrics.items() if k.startswith(kinds) and isinstance(v, int | float)}


def detection_numbers(folder: Path) -> dict[str, dict[str, float]]:
    """Collect AP50 of each class group, by test."""
    tests = {t: metrics_of(folder / f"detection_{t}.metrics.json") for t in TESTS}
    return {k: {t: tests[t][k] for t in TESTS} for k in AP50}


def grounding_numbers(folder: Path, data: Path) -> dict[str, Any]:
    """Collect zero-shot grounding and the trained head, on the same single-target sentences."""
    runs = {n: metrics_of(folder / f"grounding{n}.metrics.json") for n in ("", "_text_shuffled", "_ground_truth")}
    heads = {m: metrics_of(folder / f"referring_{m}.metrics.json") for m in HEAD_MODES}
    sentences = grounded_sentences(folder, data)
    return {
        "sentences": len(sentences),
        "acc50": {
            **{m: runs[""][m]["acc50"] for m in GROUNDING_MODES},
            "text_shuffled": runs["_text_shuffled"]["hard"]["acc50"],
        },
        "by_threshold": {m: runs[""][m] for m in GROUNDING_MODES},
        "chance": runs[""]["chance"]["acc50"],
        "best_possible": runs[""]["best_possible"]["acc50"],
        "ground_truth_boxes": {
            "acc50": {m: runs["_ground_truth"][m]["acc50"] for m in ("hard", "off")},
            "chance": runs["_ground_truth"]["chance"]["acc50"],
        },
        "head": {
            m: {**head_metric(folder, sentences, m)[0](np.ones(pictures_of(sentences))), **heads[m]} for m in HEAD_MODES
        },
    }


def grounded_sentences(folder: Path, data: Path) -> list[Expression]:
    """Load the single-target sentences that were grounded zero-shot."""
    predictions = load_grounding_predictions(folder / "grounding.hard.jsonl")
    everything = single_targets(load_expressions(data / "refs/finetune_toy_val.json"))[0]
    return [e for e in everything if e.id in predictions]


def pictures_of(sentences: Sequence[Expression]) -> int:
    """Count the images of the sentences."""
    return len({e.image_id for e in sentences})


def head_metric(folder: Path, sentences: Sequence[Expression], mode: str) -> tuple[Metric, int]:
    """Accuracy metric of the trained head's best box."""
    return boxes_metric(folder / f"referring_{mode}.jsonl", sentences)


def boxes_metric(path: Path, sentences: Sequence[Expression]) -> tuple[Metric, int]:
    """Accuracy metric of a prediction file on these sentences."""
    ids = {e.id for e in sentences}
    predictions: dict[int | str, GroundedBoxes] = {
        k: v for k, v in load_grounding_predictions(path).items() if k in ids
    }
    scores = score_referring(sentences, predictions)
    return referring_metric(scores.overlap, scores.images)


def gaps(folder: Path, data: Path, towers: Mapping[str, str]) -> dict[str, Gap]:
    """Compute the differences behind the report's conclusions: hard masks minus the mode in the key."""
    truth = load_ground_truth(data / "annotations/instances_val.json")
    held_out = read_json(data / "world.json", "facts of the world")["held_out"]
    out = presence_gaps(truth, data, towers, held_out)
    for mode in ("off", "shuffled", "random"):
        out |= detection_gaps(folder, data, mode)
    sentences = grounded_sentences(folder, data)
    for name, modes in (("grounding", GROUNDING_MODES), ("referring", HEAD_MODES)):
        files = {m: folder / (f"grounding.{m}.jsonl" if name == "grounding" else f"referring_{m}.jsonl") for m in modes}
        first, pictures = boxes_metric(files["hard"], sentences)
        for mode in modes[1:]:
            out[f"{name} {mode}"] = Gap.of(first, boxes_metric(files[mode], sentences)[0], pictures, "acc50")
    zero_shot, pictures = boxes_metric(folder / "grounding.hard.jsonl", sentences)
    out["referring zero-shot"] = Gap.of(head_metric(folder, sentences, "hard")[0], zero_shot, pictures, "acc50")
    return out


def detection_gaps(folder: Path, data: Path, mode: str) -> dict[str, Gap]:
    """AP50 of base and novel classes with hard masks, minus that of another mask mode with the same heads."""
    annotations = data / "annotations"
    _, result = compare(
        "ov-coco",
        annotations / "instances_val.json",
        folder / f"detection_{mode}.json",
        folder / "detection_hard.json",
        resamples=DRAWS // 3,
        progress=False,
        split_file=annotations / "split.json",
    )
    return {
        f"{group} {mode}": Gap(*(result[f"{group}_ap50"][k] for k in ("difference", "low", "high")))
        for group in ("base", "novel")
        if f"{group}_ap50" in result
    }


@dataclass(frozen=True)
class Presence:
    """Scores of colour-and-shape phrases on images.

    Attributes:
        phrases: C phrases, each true for some image.
        present: ``[I, C]`` whether the phrase is true for the image.
        scores: ``[I, C]`` cosines, by towers and mask mode.
    """

    phrases: list[str]
    present: np.ndarray
    scores: dict[str, np.ndarray]

    def metric(self, scores: str, phrases: Sequence[str] | None = None) -> Callable[[np.ndarray], dict[str, float]]:
        """Mean average precision of the phrases, as a function of image weights ``[I]``."""
        chosen = [n for n, p in enumerate(self.phrases) if phrases is None or p in phrases]
        return mean_precision(self.present[:, chosen], self.scores[scores][:, chosen])


def mean_precision(present: np.ndarray, scores: np.ndarray) -> Callable[[np.ndarray], dict[str, float]]:
    """``map`` of ``[I, C]`` scores as a function of image weights; classes without a positive are skipped.

    An image drawn twice counts as two with the same score, i.e. one threshold.
    """
    order = np.argsort(-scores, axis=0, kind="stable")
    hits = np.take_along_axis(present, order, axis=0)

    def metric(weights: np.ndarray) -> dict[str, float]:
        drawn = weights[order]
        right = drawn * hits
        total = right.sum(axis=0)
        precision = np.cumsum(right, axis=0) / np.maximum(np.cumsum(drawn, axis=0), 1)
        ap = (precision * right).sum(axis=0) / np.maximum(total, 1)
        return {"map": float(ap[total > 0].mean()) if (total > 0).any() else math.nan}

    return metric


@torch.no_grad()
def presence(truth: GroundTruth, data: Path, towers: Mapping[str, str]) -> Presence:
    """Score all colour-and-shape phrases on the validation images, as the validation of the alignments does."""
    images = truth.data["images"]
    rows = {i["id"]: n for n, i in enumerate(images)}
    described = [
        (rows[a["image_id"]], f"{a['attributes']['colour']} {truth.categories[a['category_id']]}")
        for a in truth.data["annotations"]
    ]
    phrases = sorted({p for _, p in described})
    present = np.zeros((len(images), len(phrases)), dtype=bool)
    for row, phrase in described:
        present[row, phrases.index(phrase)] = True
    squares = [pixels(fit_square(open_rgb(data / "images/val" / i["file_name"]), IMAGE_SIDE, "pad")) for i in images]
    scores = {}
    for name, path in towers.items():
        encoder = load_encoder({"checkpoint": path})
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in encoder.image_statistics())
        vectors = torch.cat(
            [
                encoder.encode_image((torch.stack(squares[n : n + 128]).float() / 255 - mean) / std)
                for n in range(0, len(squares), 128)
            ]
        )
        bank = build_bank(encoder, phrases, templates=[TOY_TEMPLATE], progress=False)
        for mode in RETRIEVAL_MODES if name == "smartclip" else ("off",):
            masks = resolve_masks(bank.masks, mode, bank.texts)
            scores[f"{name} {mode}"] = masked_cosine(vectors, bank.embeds, masks, text_norm="masked").numpy()
    return Presence(phrases, present, scores)


def presence_gaps(truth: GroundTruth, data: Path, towers: Mapping[str, str], held_out: Sequence[str]) -> dict[str, Gap]:
    """Colour + shape mAP with hard masks minus that of other mask modes and of CLIP, for all and for held-out pairs."""
    scored, pictures = presence(truth, data, towers), len(truth.data["images"])
    out = {}
    for name, phrases in (("colour_shape", None), ("held_out", held_out)):
        if phrases is not None and not set(phrases) & set(scored.phrases):
            continue
        first = scored.metric("smartclip hard", phrases)
        for scores in scored.scores:
            if scores != "smartclip hard":
                label = "clip" if scores == "clip off" else scores.split()[1]
                out[f"{name} {label}"] = Gap.of(first, scored.metric(scores, phrases), pictures, "map")
    return out


REQUIRED = {
    "alignment": {
        "clip": ("map_shape_off", "map_colour_shape_off"),
        "smartclip": tuple(f"{k}_{m}" for k in ALIGNMENT[:2] for m in RETRIEVAL_MODES),
    },
    "region_probe": dict.fromkeys(("base", "novel"), dict.fromkeys(("dense", "crop"), ("hard", "off"))),
    "detection": dict.fromkeys(AP50, TESTS),
    "grounding": {"acc50": (*GROUNDING_MODES, "text_shuffled"), "head": dict.fromkeys(HEAD_MODES, ("acc50",))},
}


def check_complete(found: Any, wanted: Any, where: str = "summary") -> None:
    """Raise a UserError if a required number is missing or not finite."""
    for key in wanted:
        if key not in found:
            raise UserError(f"{where}.{key} was not measured.")
        if isinstance(wanted, dict):
            check_complete(found[key], wanted[key], f"{where}.{key}")
        elif not (isinstance(found[key], float) and math.isfinite(found[key])):
            raise UserError(f"{where}.{key} is {found[key]!r}, not a finite number.")
