"""Does presence scoring help? Absent names with growing vocabularies, and no-target sentences, with controls.

Half of the images calibrate scale and bias of presence and of region scores, on the names of the annotations; the other
half is evaluated. In a vocabulary of K names, an image gets its own names, then other names of the annotations up to
half of K, then foreign names, which occur in no image.

Shape letters: R regions, C names, P vectors of an image, S sentences.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from smartclip_det.apis.rescoring import GROUND_TRUTH, saved_boxes
from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.presence import fit_sigmoid, presence_cosine, rising, weighed_presence
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.similarity import donor_rows, text_seed
from smartclip_det.core.text_bank import TextBank
from smartclip_det.core.words import PRESENCE_SOURCES
from smartclip_det.formats.annotations import GroundTruth, load_ground_truth
from smartclip_det.formats.pictures import picture_path
from smartclip_det.metrics.absent_names import PooledDetections, match_boxes
from smartclip_det.metrics.bootstrap import Metric, paired_bootstrap
from smartclip_det.models.regions import RegionEncoder
from smartclip_det.models.rescoring import RescoreOptions, detect_in_boxes
from smartclip_det.models.towers.source import load_encoder
from smartclip_det.models.towers.tokenizer import imagenet_names
from smartclip_det.models.vocabulary import build_bank, resolve_names
from smartclip_det.protocols.stamp import file_hash, protocol_stamp, write_results
from smartclip_det.studies.presence_grounding import measure_grounding
from smartclip_det.utils.devices import resolve_device
from smartclip_det.utils.images import open_rgb

#: The 1,000 classes of ImageNet, with open_clip's spelling.
IMAGENET = "imagenet_1000"
Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class PresenceOptions:
    """Options of the presence study.

    Attributes:
        encoder: encoder config, see :func:`load_encoder`.
        ann: COCO annotations, whose class names can occur in the images.
        images: image folder.
        boxes: ``ground-truth``, or saved detections, whose scores are objectness.
        sizes: vocabulary sizes K.
        absent: source of foreign names: ``imagenet_1000``, a known vocabulary, or a file.
        powers: exponents of presence.
        sources: presence sources, ``pooled`` or ``cells``.
        expressions: referring expressions, some without a target; None skips grounding.
        expression_images: image folder of ``expressions``; None: ``images``.
        template: template that turns a name into a text.
        mask_mode: ``hard``, ``soft`` or ``off``.
        text_norm: ``full``, or ``masked`` for towers trained with it.
        learned_scale: keep the towers' learned scale and calibrate only biases.
        dense_size: side of the dense input in pixels; 0: the tower's input size.
        max_boxes: saved boxes per image.
        limit: use only the first N images; 0: all.
        resamples: resamples of the paired bootstrap.
        seed: seed of the halves and vocabularies.
        device: see :func:`resolve_device`.
        out: JSON output.
    """

    encoder: Mapping[str, Any]
    ann: Path
    images: Path
    boxes: str = GROUND_TRUTH
    sizes: Sequence[int] = (10, 100, 1000)
    absent: str = IMAGENET
    powers: Sequence[float] = (0.5, 1.0)
    sources: Sequence[str] = PRESENCE_SOURCES
    expressions: Path | None = None
    expression_images: Path | None = None
    template: str = "{article} {}"
    mask_mode: str = "hard"
    text_norm: str = "full"
    learned_scale: bool = False
    dense_size: int = 0
    max_boxes: int = 100
    limit: int = 0
    resamples: int = 200
    seed: int = 0
    device: str = "auto"
    out: Path = Path("work_dirs/presence.json")

    def __post_init__(self) -> None:
        check_choice("mask_mode", self.mask_mode, ("hard", "soft", "off"))
        for s in self.sources:
            check_choice("presence source", s, PRESENCE_SOURCES)
        if min(self.sizes, default=0) < 2 or min(self.powers, default=0) <= 0:
            raise UserError(
                f"Vocabulary sizes must be at least 2 and exponents above 0; got {list(self.sizes)} "
                f"and {list(self.powers)}."
            )


@dataclass
class ScoredImage:
    """One image, scored once for all names.

    Attributes:
        image_id: image id.
        boxes: ``[R, 4]`` xyxy candidates.
        objectness: ``[R]`` objectness of the boxes.
        regions: ``[R, C]`` cosines of the regions.
        presence: per source, ``[C]`` cosines of the whole image.
        objects: ``[G, 4]`` xyxy ground truth.
        classes: ``[G]`` classes of the objects, as rows of the bank.
    """

    image_id: Any
    boxes: Tensor
    objectness: Tensor
    regions: Tensor
    presence: dict[str, Tensor]
    objects: Tensor
    classes: Tensor


def measure_presence(options: PresenceOptions) -> tuple[Results, Path]:
    """Calibrate on one half, evaluate the other, write the results.

    Raises:
        UserError: for missing or invalid files, too few foreign names, or an empty half.
    """
    o = options
    truth = load_ground_truth(o.ann)
    known = list(truth.categories.values())
    foreign = foreign_names(o.absent, known, max(o.sizes), o.seed)
    towers = load_encoder(o.encoder, str(resolve_device(o.device)))
    encoder = RegionEncoder(towers, dense_size=o.dense_size)
    scale = float(towers.logit_scale.exp()) if o.learned_scale else None
    policy = ScoringPolicy(mask_mode=o.mask_mode, text_norm=o.text_norm, activation="sigmoid")
    bank = build_bank(towers, [*known, *foreign], templates=[o.template]).to("cpu")
    seen = score_images(o, truth, encoder, bank, policy)
    policies = calibrated([p for p in seen if calibrates(p.image_id, o.seed)], len(known), o, policy, scale)
    half = [p for p in seen if not calibrates(p.image_id, o.seed)]
    results: Results = {"calibration": {s: _calibration(p) for s, p in policies.items()}}
    results["detection"] = {str(k): measure_detection(o, half, bank, len(known), k, policies) for k in o.sizes}
    if o.expressions is not None:
        results["grounding"] = measure_grounding(
            o.expressions,
            o.expression_images or o.images,
            str(o.ann),
            encoder,
            next(iter(policies.values())),
            sources=o.sources,
            powers=o.powers,
            scale=scale,
            resamples=o.resamples,
            calibrates=lambda image_id: calibrates(image_id, o.seed),
            limit=o.limit,
        )
    stamp = protocol_stamp(
        "presence",
        ann_sha256=file_hash(o.ann),
        checkpoint_hash=towers.checkpoint_hash,
        boxes=o.boxes,
        absent=o.absent,
        foreign=len(foreign),
        known=len(known),
        template=o.template,
        policy=policy.to_dict(),
        learned_scale=o.learned_scale,
        dense_size=encoder.dense_size,
        max_boxes=o.max_boxes,
        seed=o.seed,
        limit=o.limit,
        resamples=o.resamples,
        iou=0.5,
        measured="half of the images; the other half is for calibration",
        expressions_sha256=None if o.expressions is None else file_hash(o.expressions),
    )
    counts = {"pictures": len(seen), "measured": len(half)}
    return results, write_results(o.out, stamp, results, counts=counts)


def _calibration(policy: ScoringPolicy) -> dict[str, float]:
    return {
        "presence_scale": policy.presence_scale,
        "presence_bias": policy.presence_bias,
        "region_scale": policy.dense_temperature,
        "region_bias": policy.sigmoid_bias,
    }


def calibrates(image_id: Any, seed: int) -> bool:
    """Whether an image is in the calibration half; depends only on its id and the seed."""
    return text_seed(str(image_id), f"presence {seed}") % 2 == 0


def foreign_names(source: str, known: Sequence[str], count: int, seed: int) -> list[str]:
    """``count`` names that share no word with the known ones, shuffled by the seed.

    Raises:
        UserError: if the source has too few.
    """
    names = imagenet_names() if source == IMAGENET else resolve_names(source)
    words = {w for n in known for w in _stems(n)}
    free = sorted({n for n in names if not words & _stems(n)})
    wanted = max(0, count - len(known))
    if len(free) < wanted:
        raise UserError(
            f"Vocabularies of {count} names need {wanted} foreign names, but only {len(free)} of the "
            f"{len(names)} names "
            f"in {source} share no word with the {len(known)} names of the annotations. Use smaller --sizes, or "
            "a longer list with --absent FILE."
        )
    random.Random(seed).shuffle(free)
    return free[:count]


def _stems(name: str) -> set[str]:
    return {w.removesuffix("s") for w in name.casefold().replace("-", " ").replace("_", " ").split()}


def score_images(
    o: PresenceOptions, truth: GroundTruth, encoder: RegionEncoder, bank: TextBank, policy: ScoringPolicy
) -> list[ScoredImage]:
    """Score every image with candidate boxes for all names."""
    candidates = saved_boxes(o.boxes, truth)
    row = {c: n for n, c in enumerate(truth.categories)}
    boxes: dict[Any, list[Any]] = {}
    for a in truth.data["annotations"]:
        if not a.get("iscrowd"):
            boxes.setdefault(a["image_id"], []).append(a)
    images = [i for i in truth.data["images"] if i["id"] in candidates]
    out = []
    for info in tqdm(images[: o.limit] if o.limit else images, desc="pictures", unit="image"):
        image = open_rgb(picture_path(o.images, info, str(o.ann)))
        corners, own, _ = candidates[info["id"]]
        best = own.argsort(descending=True, stable=True)[: o.max_boxes]
        annotated = boxes.get(info["id"], [])
        objects = torch.tensor([a["bbox"] for a in annotated], dtype=torch.float32).view(-1, 4)
        objects[:, 2:] += objects[:, :2]
        vectors = encoder.vectors(image, corners[best].tolist(), "dense")
        presence = {s: presence_cosine(encoder.picture(image, s), bank, policy) for s in o.sources}
        classes = torch.tensor([row[a["category_id"]] for a in annotated], dtype=torch.long)
        out.append(
            ScoredImage(info["id"], corners[best], own[best], bank.cosine(vectors, policy), presence, objects, classes)
        )
    return out


def calibrated(
    half: Sequence[ScoredImage], known: int, o: PresenceOptions, policy: ScoringPolicy, scale: float | None
) -> dict[str, ScoringPolicy]:
    """Fit, per source, a policy that turns region and presence cosines into probabilities, on the annotated names."""
    if not half:
        raise UserError("The calibration half has no image. Use more images, or another --seed.")
    # A box counts as positive for the class of an object that it overlaps with IoU >= 0.5.
    right = [
        torch.stack(
            [
                torch.from_numpy(match_boxes(p.boxes, torch.full((len(p.boxes),), c), p.objects, p.classes))
                for c in range(known)
            ],
            dim=1,
        )
        for p in half
    ]
    regions = rising(fit_sigmoid(torch.cat([p.regions[:, :known] for p in half]), torch.cat(right), scale))
    there = torch.stack([torch.isin(torch.arange(known), p.classes) for p in half])
    out = {}
    for s in o.sources:
        presence = rising(fit_sigmoid(torch.stack([p.presence[s][:known] for p in half]), there, scale))
        out[s] = policy.with_(
            presence_source=s,
            presence_scale=presence[0],
            presence_bias=presence[1],
            dense_temperature=regions[0],
            sigmoid_bias=regions[1],
        )
    return out


def measure_detection(
    o: PresenceOptions,
    half: Sequence[ScoredImage],
    bank: TextBank,
    known: int,
    size: int,
    policies: Mapping[str, ScoringPolicy],
) -> Results:
    """Evaluate one vocabulary size: without presence, with it, and its controls; with paired gains over no presence."""
    vocabularies = [episode(p, known, len(bank), size, o.seed) for p in half]
    first = next(iter(policies.values()))
    none: list[Tensor | None] = [None] * len(half)
    rows = {"presence 0": detect(half, vocabularies, known, first, none)}
    donors = donor_rows(bank.texts, None)
    for source, policy in policies.items():
        own = [p.presence[source] for p in half]
        given = {"": own, ", of another picture": own[1:] + own[:1], ", of another name": [c[donors] for c in own]}
        for power in o.powers:
            for control, cosines in given.items():
                raised = replace(policy, presence=power)
                rows[f"{source}, presence {power:g}{control}"] = detect(half, vocabularies, known, raised, cosines)
    metrics = {k: r.metric() for k, r in rows.items()}
    return {k: {**r.facts(), **gain(metrics["presence 0"], metrics[k], o.resamples)} for k, r in rows.items()}


def gain(base: tuple[Metric, int], other: tuple[Metric, int], resamples: int) -> dict[str, Any]:
    """``gain``: per metric, the difference to no presence, with its paired interval over images."""
    intervals = paired_bootstrap(base[0], other[0], base[1], resamples=resamples, progress=False)
    return {"gain": {k: {n: v[n] for n in ("difference", "low", "high")} for k, v in intervals.items()}}


def episode(picture: ScoredImage, known: int, names: int, size: int, seed: int) -> Tensor:
    """``[K]`` bank rows of an image's vocabulary: its own names, absent known names, foreign names."""
    draw = random.Random(f"{seed} {picture.image_id}")
    own = sorted(set(picture.classes.tolist()))
    own = own if len(own) <= size else sorted(draw.sample(own, size))
    absent = [c for c in range(known) if c not in set(picture.classes.tolist())]
    absent = draw.sample(absent, min(len(absent), size // 2, size - len(own)))
    foreign = range(known, min(names, known + size - len(own) - len(absent)))
    return torch.tensor([*own, *sorted(absent), *foreign])


def detect(
    half: Sequence[ScoredImage],
    vocabularies: Sequence[Tensor],
    known: int,
    policy: ScoringPolicy,
    presence: Sequence[Tensor | None],
) -> PooledDetections:
    """Detect in every image with its vocabulary, pooled into one ranking."""
    rows, objects = [], []
    for picture, names, cosines in zip(half, vocabularies, presence, strict=True):
        scores = (policy.dense_temperature * picture.regions[:, names] + policy.sigmoid_bias).sigmoid()
        if cosines is not None:
            scores = scores * weighed_presence(cosines[names], policy).exp()
        boxes, labels, values = detect_in_boxes(picture.boxes, picture.objectness, scores, RescoreOptions())
        wanted = torch.isin(picture.classes, names)
        objects.append(int(wanted.sum()))
        predicted = names[labels]
        rows.append(
            {
                "scores": values.numpy(),
                "foreign": (predicted >= known).numpy(),
                "absent": ~np.isin(predicted.numpy(), picture.classes.numpy()),
                "hits": match_boxes(picture.boxes[boxes], predicted, picture.objects[wanted], picture.classes[wanted]),
            }
        )
    return PooledDetections.cat(rows, objects)
