"""Does presence pay? Absent names under vocabularies of growing size, and "none" in grounding, with controls.

Half of the pictures calibrate: scale and offset of presence and of region scores, by the names of the annotations. The
other half is measured. Of a vocabulary of K names a picture gets its own, then others of the annotations for at most
half of K, then foreign ones.

Shape letters: R regions, C names, P vectors of a picture, S sentences.
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
from smartclip_det.core.presence import fit_sigmoid, presence_cosine, weighed_presence
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

#: The 1,000 classes of ImageNet, as open_clip spells them.
IMAGENET = "imagenet_1000"
Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class PresenceOptions:
    """Whose presence is measured, on what.

    Attributes:
        encoder: config of an encoder, see :func:`load_encoder`.
        ann: COCO annotations; their names are those that can be there.
        images: folder of ``file_name``.
        boxes: ``ground-truth``, or saved detections, whose scores are objectness.
        sizes: K, names of a vocabulary.
        absent: foreign names: ``imagenet_1000``, a known vocabulary, or a file.
        powers: exponents of presence.
        sources: ``pooled``, ``cells``.
        expressions: file of referring expressions with sentences of none; None leaves grounding out.
        expression_images: folder of their ``file_name``; None: ``images``.
        template: text of a name.
        mask_mode: ``hard``, ``soft`` or ``off``.
        text_norm: ``full``, or ``masked`` for towers that were trained so.
        learned_scale: keep the scale that the towers learned; only offsets are then calibrated.
        dense_size: side of the dense input in pixels; 0: the tower's.
        max_boxes: of a picture, for saved ones.
        limit: first so many pictures only; 0: all.
        resamples: of the paired bootstrap.
        seed: of halves and vocabularies.
        device: see :func:`resolve_device`.
        out: JSON.
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
                f"Vocabularies have at least 2 names, and exponents are over 0; given {list(self.sizes)} "
                f"and {list(self.powers)}."
            )


@dataclass
class SeenPicture:
    """One picture, scored once for all names.

    Attributes:
        image_id: its id.
        boxes: ``[R, 4]`` xyxy candidates.
        objectness: ``[R]``.
        regions: ``[R, C]`` cosines.
        presence: by source ``[C]`` cosines of the whole picture.
        objects: ``[G, 4]`` xyxy ground truth.
        classes: ``[G]`` their names, as rows of the bank.
    """

    image_id: Any
    boxes: Tensor
    objectness: Tensor
    regions: Tensor
    presence: dict[str, Tensor]
    objects: Tensor
    classes: Tensor


def measure_presence(options: PresenceOptions) -> tuple[Results, Path]:
    """Calibrate on one half, measure the other, write.

    Raises:
        UserError: for files that are missing or wrong, too few foreign names, or halves without anything to measure.
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
    seen = see(o, truth, encoder, bank, policy)
    policies = calibrated([p for p in seen if calibrates(p.image_id, o.seed)], len(known), o, policy, scale)
    half = [p for p in seen if not calibrates(p.image_id, o.seed)]
    results: Results = {"calibration": {s: _told(p) for s, p in policies.items()}}
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
        measured="half of the pictures; the other half calibrates",
        expressions_sha256=None if o.expressions is None else file_hash(o.expressions),
    )
    counts = {"pictures": len(seen), "measured": len(half)}
    return results, write_results(o.out, stamp, results, counts=counts)


def _told(policy: ScoringPolicy) -> dict[str, float]:
    return {
        "presence_scale": policy.presence_scale,
        "presence_bias": policy.presence_bias,
        "region_scale": policy.dense_temperature,
        "region_bias": policy.sigmoid_bias,
    }


def calibrates(image_id: Any, seed: int) -> bool:
    """Which half a picture is in: by its id alone, whatever else a file holds."""
    return text_seed(str(image_id), f"presence {seed}") % 2 == 0


def foreign_names(source: str, known: Sequence[str], count: int, seed: int) -> list[str]:
    """``count`` names that share no word with the known ones, in an order drawn by the seed.

    Raises:
        UserError: where the source has fewer.
    """
    names = imagenet_names() if source == IMAGENET else resolve_names(source)
    words = {w for n in known for w in _stems(n)}
    free = sorted({n for n in names if not words & _stems(n)})
    wanted = max(0, count - len(known))
    if len(free) < wanted:
        raise UserError(
            f"Vocabularies of {count} names need {wanted} that are never there; {source} has {len(free)} of "
            f"{len(names)} that share no word with the {len(known)} names of the annotations. Give smaller --sizes, or "
            "a longer list by --absent FILE."
        )
    random.Random(seed).shuffle(free)
    return free[:count]


def _stems(name: str) -> set[str]:
    return {w.removesuffix("s") for w in name.casefold().replace("-", " ").replace("_", " ").split()}


def see(
    o: PresenceOptions, truth: GroundTruth, encoder: RegionEncoder, bank: TextBank, policy: ScoringPolicy
) -> list[SeenPicture]:
    """Every picture with candidate boxes, scored for all names."""
    found = saved_boxes(o.boxes, truth)
    row = {c: n for n, c in enumerate(truth.categories)}
    boxes: dict[Any, list[Any]] = {}
    for a in truth.data["annotations"]:
        if not a.get("iscrowd"):
            boxes.setdefault(a["image_id"], []).append(a)
    images = [i for i in truth.data["images"] if i["id"] in found]
    out = []
    for info in tqdm(images[: o.limit] if o.limit else images, desc="pictures", unit="image"):
        image = open_rgb(picture_path(o.images, info, str(o.ann)))
        corners, own, _ = found[info["id"]]
        best = own.argsort(descending=True, stable=True)[: o.max_boxes]
        mine = boxes.get(info["id"], [])
        objects = torch.tensor([a["bbox"] for a in mine], dtype=torch.float32).view(-1, 4)
        objects[:, 2:] += objects[:, :2]
        vectors = encoder.vectors(image, corners[best].tolist(), "dense")
        presence = {s: presence_cosine(encoder.picture(image, s), bank, policy) for s in o.sources}
        classes = torch.tensor([row[a["category_id"]] for a in mine], dtype=torch.long)
        out.append(
            SeenPicture(info["id"], corners[best], own[best], bank.cosine(vectors, policy), presence, objects, classes)
        )
    return out


def calibrated(
    half: Sequence[SeenPicture], known: int, o: PresenceOptions, policy: ScoringPolicy, scale: float | None
) -> dict[str, ScoringPolicy]:
    """A policy for each source: regions and presence as probabilities, by the names of the annotations."""
    if not half:
        raise UserError("No picture is in the half that calibrates: give more pictures, or another --seed.")
    # A box has the name of an object that it overlaps by half.
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
    regions = fit_sigmoid(torch.cat([p.regions[:, :known] for p in half]), torch.cat(right), scale)
    there = torch.stack([torch.isin(torch.arange(known), p.classes) for p in half])
    out = {}
    for s in o.sources:
        presence = fit_sigmoid(torch.stack([p.presence[s][:known] for p in half]), there, scale)
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
    half: Sequence[SeenPicture],
    bank: TextBank,
    known: int,
    size: int,
    policies: Mapping[str, ScoringPolicy],
) -> Results:
    """Rows of one vocabulary size: without presence, with it, and its controls; gains in pairs over no presence."""
    asked = [episode(p, known, len(bank), size, o.seed) for p in half]
    first = next(iter(policies.values()))
    none: list[Tensor | None] = [None] * len(half)
    rows = {"presence 0": detect(half, asked, known, first, none)}
    donors = donor_rows(bank.texts, None)
    for source, policy in policies.items():
        own = [p.presence[source] for p in half]
        given = {"": own, ", of another picture": own[1:] + own[:1], ", of another name": [c[donors] for c in own]}
        for power in o.powers:
            for control, cosines in given.items():
                raised = replace(policy, presence=power)
                rows[f"{source}, presence {power:g}{control}"] = detect(half, asked, known, raised, cosines)
    metrics = {k: r.metric() for k, r in rows.items()}
    return {k: {**r.facts(), **gain(metrics["presence 0"], metrics[k], o.resamples)} for k, r in rows.items()}


def gain(base: tuple[Metric, int], other: tuple[Metric, int], resamples: int) -> dict[str, Any]:
    """``gain``: by metric the difference over no presence, with its paired interval over pictures."""
    found = paired_bootstrap(base[0], other[0], base[1], resamples=resamples, progress=False)
    return {"gain": {k: {n: v[n] for n in ("difference", "low", "high")} for k, v in found.items()}}


def episode(picture: SeenPicture, known: int, names: int, size: int, seed: int) -> Tensor:
    """``[K]`` rows of a picture's vocabulary: its own names, known ones that are absent, foreign ones."""
    draw = random.Random(f"{seed} {picture.image_id}")
    own = sorted(set(picture.classes.tolist()))
    own = own if len(own) <= size else sorted(draw.sample(own, size))
    absent = [c for c in range(known) if c not in set(picture.classes.tolist())]
    absent = draw.sample(absent, min(len(absent), size // 2, size - len(own)))
    foreign = range(known, min(names, known + size - len(own) - len(absent)))
    return torch.tensor([*own, *sorted(absent), *foreign])


def detect(
    half: Sequence[SeenPicture],
    asked: Sequence[Tensor],
    known: int,
    policy: ScoringPolicy,
    presence: Sequence[Tensor | None],
) -> PooledDetections:
    """Detections of every picture under its vocabulary, as one ranking."""
    rows, objects = [], []
    for picture, names, cosines in zip(half, asked, presence, strict=True):
        scores = (policy.dense_temperature * picture.regions[:, names] + policy.sigmoid_bias).sigmoid()
        if cosines is not None:
            scores = scores * weighed_presence(cosines[names], policy).exp()
        boxes, labels, values = detect_in_boxes(picture.boxes, picture.objectness, scores, RescoreOptions())
        wanted = torch.isin(picture.classes, names)
        objects.append(int(wanted.sum()))
        told = names[labels]
        rows.append(
            {
                "scores": values.numpy(),
                "foreign": (told >= known).numpy(),
                "absent": ~np.isin(told.numpy(), picture.classes.numpy()),
                "hits": match_boxes(picture.boxes[boxes], told, picture.objects[wanted], picture.classes[wanted]),
            }
        )
    return PooledDetections.cat(rows, objects)
