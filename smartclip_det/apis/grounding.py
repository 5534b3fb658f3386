"""Zero-shot grounding of a file of referring expressions: candidate boxes ranked by masked cosine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import nms
from tqdm import tqdm

from smartclip_det.apis.grounding_options import GroundOptions, ProposalOptions, ReadingOptions
from smartclip_det.core.errors import UserError
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
from smartclip_det.models.regions import RegionEncoder
from smartclip_det.models.vocabulary import build_bank
from smartclip_det.protocols.stamp import file_hash, protocol_stamp, write_results
from smartclip_det.utils.files import write_whole
from smartclip_det.utils.images import open_rgb

Found = dict[str, dict[int | str, GroundedBoxes]]


@dataclass
class GroundResult:
    """Result of zero-shot grounding.

    Attributes:
        predictions: by mask mode and sentence id, xyxy boxes in image pixels by descending score.
        metrics: by mask mode; with ``answers="one"`` also of ``chance`` and ``best_possible``.
        counts: numbers of sentences, skipped sentences, and images.
        protocol: the stamp.
        files: written predictions, by mask mode.
    """

    predictions: Found
    metrics: dict[str, dict[str, float]]
    counts: dict[str, int]
    protocol: dict[str, Any]
    files: dict[str, Path] = field(default_factory=dict)


def ground_expressions(options: GroundOptions) -> GroundResult:
    """Encode each image once, and score all its sentences with every mask mode.

    Raises:
        UserError: for missing or invalid files, and conflicting options.
    """
    given = options.expressions
    everything = load_expressions(given.ann, split=given.split)
    wanted, left_out = (everything, 0) if options.every_sentence else single_targets(everything)
    wanted = wanted[: given.limit] if given.limit else wanted
    encoders = options.encoder.load()
    towers = [e.towers for e in encoders]
    grounders = build_grounders(options, encoders)
    first = next(iter(grounders.values()))
    texts = list(dict.fromkeys(t for e in wanted for t in first.texts(e.sentence)))
    banks = [build_bank(t, texts, templates="none") for t in towers]
    banks = [b.text_shuffled() for b in banks] if options.reading.control == "text_shuffled" else banks
    boxes = proposals(options, wanted, everything)
    found: Found = {m: {} for m in grounders}
    by_image: dict[int | str, list[Expression]] = {}
    for e in wanted:
        by_image.setdefault(e.image_id, []).append(e)
    for mine in tqdm(by_image.values(), desc="grounding", unit="image"):
        image = open_rgb(Path(given.images) / mine[0].file_name)
        for group in same_boxes(mine, boxes):
            for mode, rows in ground(options, grounders, banks, image, group, boxes[group[0].id]).items():
                found[mode].update(rows)
    counts = {"sentences": len(wanted), "left_out": left_out, "images": len(by_image)}
    result = GroundResult(found, measured(options, wanted, found, boxes), counts, stamp_of(options, first))
    if options.out is not None:
        write(result, Path(options.out))
    return result


def build_grounders(options: GroundOptions, encoders: Sequence[RegionEncoder]) -> dict[str, ZeroShotGrounder]:
    """Build a grounder for each mask mode; they share their encoders."""
    subtracted = subtracted_banks(options.reading, [e.towers for e in encoders])
    reader = reader_of(options.reading.parser)
    return {
        mode: ZeroShotGrounder(
            encoders,
            views=options.encoder.views,
            reading=options.reading.reading,
            reader=reader,
            subtracted=subtracted,
            policy=replace(options.policy, mask_mode=mode),
        )
        for mode in options.mask_modes
    }


def stamp_of(options: GroundOptions, grounder: ZeroShotGrounder) -> dict[str, Any]:
    """Build the stamp of the results."""
    data, boxes, texts, every = options.expressions, options.proposals, options.reading, options.every_sentence
    return protocol_stamp(
        "grounding_zero_shot",
        proposals=boxes.source,
        max_proposals=boxes.limit,
        views=list(options.encoder.views),
        detector=boxes.checkpoint and {"config": boxes.config, "checkpoint_sha256": file_hash(boxes.checkpoint)},
        detector_weight=boxes.detector_weight,
        dense_mode=options.encoder.dense_mode,
        dense_size=grounder.encoders[0].dense_size,
        crop_context=options.encoder.crop_context,
        reading=texts.reading,
        parser=parser_name(texts.parser),
        control=texts.control,
        answers=data.answers,
        margin=options.margin,
        nms=options.nms if every else None,
        subtract=texts.subtract and {"captions": texts.subtract, "count": texts.subtract_count, "seed": texts.seed},
        checkpoint_hash=[e.towers.checkpoint_hash for e in grounder.encoders],
        ann_sha256=file_hash(data.ann),
        split=data.split,
        policy=grounder.policy.to_dict(),
        unit="sentence" if every else "sentence with one target",
    )


def measured(
    options: GroundOptions, wanted: list[Expression], found: Found, boxes: Mapping[int | str, Candidates]
) -> dict[str, dict[str, float]]:
    """Metrics of each mask mode, of chance, and of the upper bound set by the proposals."""
    if options.every_sentence:
        return {mode: {} for mode in found}
    metrics = {m: referring_metrics(score_referring(wanted, p).overlap) for m, p in found.items()}
    offered = {k: c.boxes for k, c in boxes.items()}
    metrics["chance"] = {"acc50": chance_accuracy(wanted, offered)}
    metrics["best_possible"] = {"acc50": best_possible(wanted, offered)}
    return metrics


def write(result: GroundResult, out: Path) -> None:
    """Write a predictions file for each mask mode, and all metrics to one JSON."""
    for mode, predictions in result.predictions.items():
        path = out.with_name(f"{out.stem}.{mode}{out.suffix}") if len(result.predictions) > 1 else out
        lines = (json.dumps({"id": k, "boxes": p.boxes, "scores": p.scores}) for k, p in predictions.items())
        result.files[mode] = write_whole(path, "".join(f"{line}\n" for line in lines))
    write_results(out.with_suffix(".metrics.json"), result.protocol, result.metrics, counts=result.counts)


def same_boxes(mine: Sequence[Expression], boxes: dict[int | str, Candidates]) -> list[list[Expression]]:
    """Group the sentences of an image that share their candidates."""
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
    """Ground sentences that share their candidates; boxes by mask mode."""
    regions = candidates.boxes
    if not regions:
        return {mode: {e.id: GroundedBoxes((), ()) for e in group} for mode in grounders}
    masks = None
    if "mask" in options.encoder.views:
        if candidates.masks is None:
            raise UserError("The mask view needs proposals with masks: --instances or a result list with segmentation.")
        masks = np.stack([whole_mask([m], (image.height, image.width), group[0].file_name) for m in candidates.masks])
    vectors = next(iter(grounders.values())).region_vectors(image, regions, masks)
    sentences = [e.sentence for e in group]
    out: dict[str, dict[int | str, GroundedBoxes]] = {}
    for mode, grounder in grounders.items():
        if options.every_sentence:
            scores = grounder.evidence(
                vectors, regions, sentences, banks, options.margin, grounder.picture_vectors(image)
            )
        else:
            scores = grounder.score(vectors, regions, sentences, banks)
            if weight := options.proposals.detector_weight:
                scores = with_detector(scores, detector_scores(candidates).expand_as(scores), weight)
        rows = {}
        for e, row in zip(group, scores, strict=True):
            order = row.argsort(descending=True)
            if options.every_sentence:
                order = nms(torch.tensor(regions, dtype=row.dtype), row, options.nms)
            rows[e.id] = GroundedBoxes([regions[i] for i in order.tolist()], row[order].tolist())
        out[mode] = rows
    return out


def detector_scores(candidates: Candidates) -> Tensor:
    """``[R]`` scores of the candidates."""
    if candidates.scores is None:
        raise UserError("--detector-weight needs proposals with scores; ground-truth boxes have none.")
    return torch.tensor(candidates.scores)


def subtracted_banks(options: ReadingOptions, towers: Sequence[Any]) -> list[TextBank] | None:
    """Sample captions and encode a bank with each encoder; None without captions to subtract."""
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
    """Candidate boxes of each sentence, from the selected source."""
    given = options.proposals
    if given.source not in ("rpn", "detector"):
        return candidates_of(given.source, wanted, given.instances, given.limit, known=everything)
    images, device = Path(options.expressions.images), options.encoder.device
    return (rpn_boxes if given.source == "rpn" else detector_boxes)(given, wanted, images, device)


def rpn_boxes(
    options: ProposalOptions, wanted: list[Expression], images: Path, device: str
) -> dict[int | str, Candidates]:
    """Top boxes of the RPN, after the detector's class-agnostic regression."""
    from smartclip_det.apis import Predictor

    predictor = Predictor.from_config(
        options.config, options.checkpoint, device=device, cfg_options=options.cfg_options
    )
    by_image: dict[int | str, Candidates] = {}
    for e in tqdm(list({e.image_id: e for e in wanted}.values()), desc="proposals", unit="image"):
        predictor.set_image(open_rgb(images / e.file_name))
        boxes, scores = predictor.proposals(options.limit)
        by_image[e.image_id] = Candidates(boxes.tolist(), scores.tolist())
    return {e.id: by_image[e.image_id] for e in wanted}


def detector_boxes(
    options: ProposalOptions, wanted: list[Expression], images: Path, device: str
) -> dict[int | str, Candidates]:
    """Top boxes of any MMDetection detector; for each sentence if it has text input."""
    from smartclip_det.apis.proposals import DetectorProposals

    detector = DetectorProposals(options.config, options.checkpoint, device=device, cfg_options=options.cfg_options)
    out: dict[int | str, Candidates] = {}
    by_image: dict[int | str, list[Expression]] = {}
    for e in wanted:
        by_image.setdefault(e.image_id, []).append(e)
    for mine in tqdm(by_image.values(), desc="proposals", unit="image"):
        image = np.asarray(open_rgb(images / mine[0].file_name))
        found = detector(image, [e.sentence for e in mine], options.limit)
        shared: dict[int, Candidates] = {}
        for e, pair in zip(mine, found, strict=True):
            # Share one object if the detector has no text input, so that its regions are encoded once.
            out[e.id] = shared.setdefault(id(pair), Candidates(pair[0].tolist(), pair[1].tolist()))
    return out
