"""Zero-shot grounding of a whole file of referring expressions: candidate boxes, ranked by masked cosine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import nms
from tqdm import tqdm

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.text_bank import TextBank
from smartclip_det.formats.candidates import Candidates, candidates_of
from smartclip_det.formats.captions import read_caption_records
from smartclip_det.formats.expressions.loading import load_expressions
from smartclip_det.formats.expressions.record import Expression, GroundedBoxes
from smartclip_det.formats.segmentations import whole_mask
from smartclip_det.metrics.referring import (
    best_possible,
    chance_accuracy,
    referring_metrics,
    score_referring,
    single_targets,
)
from smartclip_det.models.grounding.dependency import parser_name, reader_of
from smartclip_det.models.grounding.zero_shot import ZeroShotGrounder, with_detector
from smartclip_det.models.region_cache import CachedRegionEncoder
from smartclip_det.models.regions import RegionEncoder
from smartclip_det.models.towers.source import load_encoder
from smartclip_det.models.vocabulary import build_bank
from smartclip_det.protocols.stamp import file_hash, protocol_stamp, write_results
from smartclip_det.utils.devices import resolve_device
from smartclip_det.utils.files import write_whole
from smartclip_det.utils.images import open_rgb

Found = dict[str, dict[int | str, GroundedBoxes]]


@dataclass(frozen=True)
class GroundOptions:
    """What is grounded, with what, and how.

    Attributes:
        ann: expressions: JSON lines, MDETR json, or refs pickle.
        images: folder of ``file_name``.
        encoder: checkpoints of towers; several make an ensemble.
        split: of the expressions.
        proposals: ``ground-truth``, ``rpn``, ``detector``, a COCO result list, or JSON lines.
        instances: COCO annotations whose boxes are the ground-truth proposals.
        config: of the detector for ``rpn`` and ``detector``.
        checkpoint: its weights.
        cfg_options: overrides of its config.
        max_proposals: best-scored proposals kept.
        detector_weight: power of the detector's scores.
        views: see :class:`ZeroShotGrounder`.
        dense_mode: last block of the dense map.
        dense_size: side of the dense input in pixels; 0: the tower's.
        crop_context: side of crops over the longer side of boxes.
        mask_modes: each is scored.
        control: ``none``, or ``text_shuffled``: exchange the texts' vectors.
        temperature: of the scores.
        reading: how an expression is read.
        parser: ``auto`` (spaCy where an English pipeline is installed, else rules), ``rules``, or a spaCy pipeline.
        answers: ``one`` (sentences with one target), or ``all``: none and many too.
        margin: with ``all``: scores are over those of the background.
        presence: with ``all``: exponent of an expression's presence in the picture, see :class:`ScoringPolicy`.
        presence_source: ``pooled`` or ``cells``.
        presence_scale: factor on the presence cosine.
        presence_bias: added to it.
        nms: with ``all``: IoU over which the weaker box goes.
        subtract: captions whose mean score is taken off each region's.
        subtract_count: captions drawn from it.
        seed: of that draw.
        cache: folder where region vectors are kept for further runs.
        device: see :func:`resolve_device`.
        limit: first so many sentences only; 0: all.
        out: predictions to write, with ``.metrics.json`` beside; None writes nothing.
    """

    ann: str | Path
    images: str | Path
    encoder: Sequence[str]
    split: str | None = None
    proposals: str = "ground-truth"
    instances: str | None = None
    config: str | None = None
    checkpoint: str | None = None
    cfg_options: Mapping[str, Any] | None = None
    max_proposals: int = 20
    detector_weight: float = 0.0
    views: Sequence[str] = ("dense",)
    dense_mode: str = "value"
    dense_size: int = 0
    crop_context: float = 1.2
    mask_modes: Sequence[str] = ("hard",)
    control: str = "none"
    temperature: float = 50.0
    reading: str = "expression"
    parser: str = "auto"
    answers: str = "one"
    margin: bool = False
    presence: float = 0.0
    presence_source: str = "pooled"
    presence_scale: float = 50.0
    presence_bias: float = 0.0
    nms: float = 0.7
    subtract: str | None = None
    subtract_count: int = 500
    seed: int = 0
    cache: Path | None = None
    device: str = "auto"
    limit: int = 0
    out: Path | None = None

    def __post_init__(self) -> None:
        check_choice("answers", self.answers, ("one", "all"))
        check_choice("control", self.control, ("none", "text_shuffled"))
        if self.detector_weight and self.answers == "all":
            raise UserError("A detector weight ranks the boxes of one answer; it has no part in --answers all.")
        if self.presence and self.answers == "one":
            raise UserError("Presence decides whether there is an answer, not which: it has a part in --answers all.")
        if self.proposals in ("rpn", "detector") and not (self.config and self.checkpoint):
            raise UserError(f"--proposals {self.proposals} needs --config and --checkpoint.")


@dataclass
class GroundResult:
    """What was found.

    Attributes:
        predictions: by mask mode and sentence id, xyxy boxes in pixels of the image, best first.
        metrics: by mask mode; with ``answers="one"`` also of ``chance`` and ``best_possible``.
        counts: sentences, those left out, images.
        protocol: the stamp.
        files: predictions written, by mask mode.
    """

    predictions: Found
    metrics: dict[str, dict[str, float]]
    counts: dict[str, int]
    protocol: dict[str, Any]
    files: dict[str, Path] = field(default_factory=dict)


def ground_expressions(options: GroundOptions) -> GroundResult:
    """Encode each image once, score all its sentences under every mask mode.

    Raises:
        UserError: for files that are missing or wrong, and options that do not go together.
    """
    everything = load_expressions(options.ann, split=options.split)
    wanted, left_out = (everything, 0) if options.answers == "all" else single_targets(everything)
    wanted = wanted[: options.limit] if options.limit else wanted
    towers = [load_encoder({"checkpoint": c}, str(resolve_device(options.device))) for c in options.encoder]
    grounders = build_grounders(options, towers)
    first = next(iter(grounders.values()))
    texts = list(dict.fromkeys(t for e in wanted for t in first.texts(e.sentence)))
    banks = [build_bank(t, texts, templates="none") for t in towers]
    banks = [b.text_shuffled() for b in banks] if options.control == "text_shuffled" else banks
    boxes = proposals(options, wanted, everything)
    found: Found = {m: {} for m in grounders}
    by_image: dict[int | str, list[Expression]] = {}
    for e in wanted:
        by_image.setdefault(e.image_id, []).append(e)
    for mine in tqdm(by_image.values(), desc="grounding", unit="image"):
        image = open_rgb(Path(options.images) / mine[0].file_name)
        for group in same_boxes(mine, boxes):
            for mode, rows in ground(options, grounders, banks, image, group, boxes[group[0].id]).items():
                found[mode].update(rows)
    counts = {"sentences": len(wanted), "left_out": left_out, "images": len(by_image)}
    result = GroundResult(found, measured(options, wanted, found, boxes), counts, stamp_of(options, towers, first))
    if options.out is not None:
        write(result, Path(options.out))
    return result


def build_grounders(options: GroundOptions, towers: Sequence[Any]) -> dict[str, ZeroShotGrounder]:
    """A grounder for each mask mode; they share their encoders."""
    settings = {
        "dense_size": options.dense_size,
        "dense_mode": options.dense_mode,
        "crop_context": options.crop_context,
    }
    encoders = [
        CachedRegionEncoder(t, options.cache, **settings) if options.cache else RegionEncoder(t, **settings)
        for t in towers
    ]
    subtracted = subtracted_banks(options, towers)
    reader = reader_of(options.parser)
    return {
        mode: ZeroShotGrounder(
            encoders,
            views=options.views,
            reading=options.reading,
            reader=reader,
            subtracted=subtracted,
            policy=ScoringPolicy(
                mask_mode=mode,
                temperature=options.temperature,
                presence=options.presence,
                presence_source=options.presence_source,
                presence_scale=options.presence_scale,
                presence_bias=options.presence_bias,
            ),
        )
        for mode in options.mask_modes
    }


def stamp_of(options: GroundOptions, towers: Sequence[Any], grounder: ZeroShotGrounder) -> dict[str, Any]:
    """The protocol of the numbers."""
    o, every = options, options.answers == "all"
    return protocol_stamp(
        "grounding_zero_shot",
        proposals=o.proposals,
        max_proposals=o.max_proposals,
        views=list(o.views),
        detector=o.checkpoint and {"config": o.config, "checkpoint_sha256": file_hash(o.checkpoint)},
        detector_weight=o.detector_weight,
        dense_mode=o.dense_mode,
        dense_size=grounder.encoders[0].dense_size,
        crop_context=o.crop_context,
        reading=o.reading,
        parser=parser_name(o.parser),
        control=o.control,
        answers=o.answers,
        margin=o.margin,
        nms=o.nms if every else None,
        subtract=o.subtract and {"captions": o.subtract, "count": o.subtract_count, "seed": o.seed},
        checkpoint_hash=[t.checkpoint_hash for t in towers],
        ann_sha256=file_hash(o.ann),
        split=o.split,
        policy=grounder.policy.to_dict(),
        unit="sentence" if every else "sentence with one target",
    )


def measured(
    options: GroundOptions, wanted: list[Expression], found: Found, boxes: Mapping[int | str, Candidates]
) -> dict[str, dict[str, float]]:
    """Metrics of each mask mode, of chance, and of the best that the proposals allow."""
    if options.answers == "all":
        return {mode: {} for mode in found}
    metrics = {m: referring_metrics(score_referring(wanted, p).overlap) for m, p in found.items()}
    offered = {k: c.boxes for k, c in boxes.items()}
    metrics["chance"] = {"acc50": chance_accuracy(wanted, offered)}
    metrics["best_possible"] = {"acc50": best_possible(wanted, offered)}
    return metrics


def write(result: GroundResult, out: Path) -> None:
    """One predictions file for each mask mode, and all metrics in one JSON."""
    for mode, predictions in result.predictions.items():
        path = out.with_name(f"{out.stem}.{mode}{out.suffix}") if len(result.predictions) > 1 else out
        lines = (json.dumps({"id": k, "boxes": p.boxes, "scores": p.scores}) for k, p in predictions.items())
        result.files[mode] = write_whole(path, "".join(f"{line}\n" for line in lines))
    write_results(out.with_suffix(".metrics.json"), result.protocol, result.metrics, counts=result.counts)


def same_boxes(mine: Sequence[Expression], boxes: dict[int | str, Candidates]) -> list[list[Expression]]:
    """The sentences of an image, those that share their candidates together."""
    groups: dict[int, list[Expression]] = {}
    for e in mine:
        groups.setdefault(id(boxes[e.id]), []).append(e)
    return list(groups.values())


def ground(
    options: GroundOptions,
    grounders: dict[str, ZeroShotGrounder],
    banks: list[TextBank],
    image: Image.Image,
    group: Sequence[Expression],
    candidates: Candidates,
) -> dict[str, dict[int | str, GroundedBoxes]]:
    """Boxes of sentences that share their candidates, by mask mode."""
    regions = candidates.boxes
    if not regions:
        return {mode: {e.id: GroundedBoxes((), ()) for e in group} for mode in grounders}
    masks = None
    if "mask" in options.views:
        if candidates.masks is None:
            raise UserError("The mask view needs proposals with masks: --instances or a result list with segmentation.")
        masks = np.stack([whole_mask([m], (image.height, image.width), group[0].file_name) for m in candidates.masks])
    vectors = next(iter(grounders.values())).region_vectors(image, regions, masks)
    sentences = [e.sentence for e in group]
    out: dict[str, dict[int | str, GroundedBoxes]] = {}
    for mode, grounder in grounders.items():
        if options.answers == "all":
            scores = grounder.evidence(
                vectors, regions, sentences, banks, options.margin, grounder.picture_vectors(image)
            )
        else:
            scores = grounder.score(vectors, regions, sentences, banks)
            if options.detector_weight:
                scores = with_detector(scores, detector_scores(candidates).expand_as(scores), options.detector_weight)
        rows = {}
        for e, row in zip(group, scores, strict=True):
            order = row.argsort(descending=True)
            if options.answers == "all":
                order = nms(torch.tensor(regions, dtype=row.dtype), row, options.nms)
            rows[e.id] = GroundedBoxes([regions[i] for i in order.tolist()], row[order].tolist())
        out[mode] = rows
    return out


def detector_scores(candidates: Candidates) -> Tensor:
    """``[R]`` scores of the candidates."""
    if candidates.scores is None:
        raise UserError("--detector-weight needs proposals with scores; ground-truth boxes have none.")
    return torch.tensor(candidates.scores)


def subtracted_banks(options: GroundOptions, towers: Sequence[Any]) -> list[TextBank] | None:
    """Captions drawn by the seed, as a bank of each encoder; None where none is asked for."""
    if not options.subtract:
        return None
    records, counts = read_caption_records(options.subtract)
    print(counts.summary(str(options.subtract), len(records)))
    texts = sorted({t for r in records for t in (r.short or [r.long])})
    drawn = np.random.default_rng(options.seed).permutation(len(texts))[: options.subtract_count]
    return [build_bank(t, [texts[i] for i in drawn], templates="none") for t in towers]


def proposals(
    options: GroundOptions, wanted: list[Expression], everything: list[Expression]
) -> dict[int | str, Candidates]:
    """Candidate boxes of each sentence, by the kind asked for."""
    if options.proposals not in ("rpn", "detector"):
        return candidates_of(options.proposals, wanted, options.instances, options.max_proposals, known=everything)
    return (rpn_boxes if options.proposals == "rpn" else detector_boxes)(options, wanted)


def rpn_boxes(options: GroundOptions, wanted: list[Expression]) -> dict[int | str, Candidates]:
    """The RPN's best boxes, after the detector's own class-agnostic regression."""
    from smartclip_det.apis import Predictor

    predictor = Predictor.from_config(
        options.config, options.checkpoint, device=options.device, cfg_options=options.cfg_options
    )
    by_image: dict[int | str, Candidates] = {}
    for e in tqdm(list({e.image_id: e for e in wanted}.values()), desc="proposals", unit="image"):
        predictor.set_image(open_rgb(Path(options.images) / e.file_name))
        boxes, scores = predictor.proposals(options.max_proposals)
        by_image[e.image_id] = Candidates(boxes.tolist(), scores.tolist())
    return {e.id: by_image[e.image_id] for e in wanted}


def detector_boxes(options: GroundOptions, wanted: list[Expression]) -> dict[int | str, Candidates]:
    """The best boxes of any MMDetection detector; of one that reads text, for each sentence."""
    from smartclip_det.apis.proposals import DetectorProposals

    detector = DetectorProposals(
        options.config, options.checkpoint, device=options.device, cfg_options=options.cfg_options
    )
    out: dict[int | str, Candidates] = {}
    by_image: dict[int | str, list[Expression]] = {}
    for e in wanted:
        by_image.setdefault(e.image_id, []).append(e)
    for mine in tqdm(by_image.values(), desc="proposals", unit="image"):
        image = np.asarray(open_rgb(Path(options.images) / mine[0].file_name))
        found = detector(image, [e.sentence for e in mine], options.max_proposals)
        shared: dict[int, Candidates] = {}
        for e, pair in zip(mine, found, strict=True):
            # One object where the detector reads no text: its regions are then encoded once.
            out[e.id] = shared.setdefault(id(pair), Candidates(pair[0].tolist(), pair[1].tolist()))
    return out
