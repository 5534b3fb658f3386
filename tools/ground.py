#!/usr/bin/env python
"""Zero-shot grounding of a file of referring expressions: candidate boxes, ranked by masked cosine.

    python tools/ground.py data/toy/refs/finetune_toy_val.json --images data/toy/images \
        --checkpoint work_dirs/toy/smartclip/epoch_1.pth --proposals ground-truth
    python tools/ground.py refs.jsonl --images train2014 --checkpoint smartclip_b16.pt --proposals detections.json \
        --views crop blur --reading both --out pred.jsonl
    python tools/ground.py refs.jsonl --images train2014 --checkpoint smartclip_b16.pt --proposals detector \
        --config mm-grounding-dino.py --detector mm-grounding-dino.pth --max-proposals 5 --detector-weight 0.5
    python tools/evaluate.py refcoco --ann refs.jsonl --pred pred.jsonl      # the same numbers

Proposals: "ground-truth" (all target boxes that the file names for an image, or all boxes of --instances), a COCO
result list, JSON lines of grounding predictions (any model's boxes, ranked again), "rpn" with --config and --detector
of ours, or "detector" with those of any MMDetection detector; one that reads text is given the expression. The kind is
in every output: numbers of different kinds do not compare.

Readings: the whole expression under its mask; "chunks": its entities, each under its own, joined by places and
relations; "both": the product. Sentences with no target or several are left out, counted; with --answers all they are
kept, every box comes with a score of its own, and "none" and "many" are a threshold's answers:

    python tools/ground.py train.jsonl --images I --checkpoint W --answers all --out train_pred.jsonl
    python tools/analysis/calibrate_grounding.py --ann train.jsonl --pred train_pred.jsonl
    python tools/evaluate.py grefcoco --ann val.jsonl --pred val_pred.jsonl --score-threshold T
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import DictAction
from PIL import Image
from torch import Tensor
from torchvision.ops import nms
from tqdm import tqdm

from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.similarity import MASK_MODES
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
from smartclip_det.models.grounding.parsing import SpacyReader, parse_expression
from smartclip_det.models.grounding.zero_shot import READINGS, VIEWS, ZeroShotGrounder, with_detector
from smartclip_det.models.region_cache import CachedRegionEncoder
from smartclip_det.models.regions import RegionEncoder
from smartclip_det.models.towers import DENSE_MODES
from smartclip_det.models.towers.source import load_encoder
from smartclip_det.models.vocabulary import build_bank
from smartclip_det.protocols.stamp import file_hash, protocol_stamp, write_results
from smartclip_det.utils.cli import format_metrics, run_tool
from smartclip_det.utils.files import write_whole
from smartclip_det.utils.images import open_rgb


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ann", help="expressions: JSON lines, MDETR json, or refs pickle")
    parser.add_argument("--split", help="split of the expressions")
    parser.add_argument("--images", type=Path, required=True, help="folder of file_name")
    parser.add_argument("--checkpoint", required=True, nargs="+", help="towers, any readable layout; several: ensemble")
    parser.add_argument("--proposals", default="ground-truth",
                        help='"ground-truth", "rpn", "detector", a COCO result list, or JSON lines')  # fmt: skip
    parser.add_argument("--instances", help="COCO annotations whose boxes are the ground-truth proposals")
    parser.add_argument("--config", help="detector config for --proposals rpn or detector")
    parser.add_argument("--detector", help="its checkpoint")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="overrides of --config, key=value")
    parser.add_argument("--max-proposals", type=int, default=20, help="best-scored proposals kept")
    parser.add_argument("--detector-weight", type=float, default=0.0, help="power of the detector's scores")
    parser.add_argument("--views", nargs="+", default=["dense"], choices=VIEWS)
    parser.add_argument("--dense-mode", default="value", choices=DENSE_MODES)
    parser.add_argument("--dense-size", type=int, default=0, help="side of the dense input; 0: the tower's")
    parser.add_argument("--crop-context", type=float, default=1.2)
    parser.add_argument("--mask-modes", nargs="+", default=["hard"], choices=MASK_MODES)
    parser.add_argument("--control", choices=["none", "text_shuffled"], default="none", help="exchange texts' vectors")
    parser.add_argument("--temperature", type=float, default=50.0)
    parser.add_argument("--reading", choices=READINGS, default="expression", help="how an expression is read")
    parser.add_argument("--parser", default="rules", help='"rules", or the name of a spaCy model (extra "parse")')
    parser.add_argument("--answers", choices=["one", "all"], default="one", help="all: also sentences of none and many")
    parser.add_argument("--margin", action="store_true", help="--answers all: scores are over those of the background")
    parser.add_argument("--nms", type=float, default=0.7, help="--answers all: IoU over which the weaker box goes")
    parser.add_argument("--subtract", help="captions (a training set) whose mean score is taken off each region's")
    parser.add_argument("--subtract-count", type=int, default=500, help="captions drawn from it")
    parser.add_argument("--seed", type=int, default=0, help="of that draw")
    parser.add_argument("--cache", type=Path, help="folder where region vectors are kept for further runs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, default=0, help="first so many sentences only")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/ground.jsonl"), help="predictions; metrics beside")
    return parser.parse_args()


def main() -> None:
    """Encode each image once, score all its sentences under every mask mode, write predictions and metrics."""
    args = parse_args()
    if args.detector_weight and args.answers == "all":
        raise UserError("--detector-weight ranks the boxes of one answer; it has no part in --answers all.")
    everything = load_expressions(args.ann, split=args.split)
    wanted, left_out = (everything, 0) if args.answers == "all" else single_targets(everything)
    wanted = wanted[: args.limit] if args.limit else wanted
    towers = [load_encoder({"checkpoint": c}, args.device) for c in args.checkpoint]
    settings = {"dense_size": args.dense_size, "dense_mode": args.dense_mode, "crop_context": args.crop_context}
    encoders = [
        CachedRegionEncoder(t, args.cache, **settings) if args.cache else RegionEncoder(t, **settings) for t in towers
    ]
    subtracted = subtracted_banks(args, towers)
    reader = parse_expression if args.parser == "rules" else SpacyReader(args.parser)
    graders = {
        mode: ZeroShotGrounder(encoders, views=args.views, reading=args.reading, reader=reader, subtracted=subtracted,
                               policy=ScoringPolicy(mask_mode=mode, temperature=args.temperature))
        for mode in args.mask_modes
    }  # fmt: skip
    first = next(iter(graders.values()))
    texts = list(dict.fromkeys(t for e in wanted for t in first.texts(e.sentence)))
    banks = [build_bank(t, texts, templates="none") for t in towers]
    banks = [b.text_shuffled() for b in banks] if args.control == "text_shuffled" else banks
    boxes = proposals(args, wanted, everything)
    found: dict[str, dict[int | str, GroundedBoxes]] = {m: {} for m in graders}
    by_image: dict[int | str, list[Expression]] = {}
    for e in wanted:
        by_image.setdefault(e.image_id, []).append(e)
    for mine in tqdm(by_image.values(), desc="grounding", unit="image"):
        image = open_rgb(args.images / mine[0].file_name)
        for group in same_boxes(mine, boxes):
            for mode, rows in ground(args, graders, banks, image, group, boxes[group[0].id]).items():
                found[mode].update(rows)
    stamp = protocol_stamp(
        "grounding_zero_shot", proposals=args.proposals, max_proposals=args.max_proposals, views=args.views,
        detector=args.detector and {"config": args.config, "checkpoint_sha256": file_hash(args.detector)},
        detector_weight=args.detector_weight, dense_mode=args.dense_mode, dense_size=encoders[0].dense_size,
        crop_context=args.crop_context, reading=args.reading, parser=args.parser,
        control=args.control, answers=args.answers, margin=args.margin, nms=args.nms if args.answers == "all" else None,
        subtract=args.subtract and {"captions": args.subtract, "count": args.subtract_count, "seed": args.seed},
        checkpoint_hash=[t.checkpoint_hash for t in towers], ann_sha256=file_hash(args.ann), split=args.split,
        policy=first.policy.to_dict(), unit="sentence" if args.answers == "all" else "sentence with one target",
    )  # fmt: skip
    report(args, wanted, found, boxes, stamp, left_out)


def same_boxes(mine: Sequence[Expression], boxes: dict[int | str, Candidates]) -> list[list[Expression]]:
    """The sentences of an image, those that share their candidates together."""
    groups: dict[int, list[Expression]] = {}
    for e in mine:
        groups.setdefault(id(boxes[e.id]), []).append(e)
    return list(groups.values())


def ground(
    args: argparse.Namespace, graders: dict[str, ZeroShotGrounder], banks: list[TextBank], image: Image.Image,
    group: Sequence[Expression], candidates: Candidates,
) -> dict[str, dict[int | str, GroundedBoxes]]:  # fmt: skip
    """Boxes of sentences that share their candidates, by mask mode."""
    regions = candidates.boxes
    if not regions:
        return {mode: {e.id: GroundedBoxes((), ()) for e in group} for mode in graders}
    masks = None
    if "mask" in args.views:
        if candidates.masks is None:
            raise UserError("The mask view needs proposals with masks: --instances or a result list with segmentation.")
        masks = np.stack([whole_mask([m], (image.height, image.width), group[0].file_name) for m in candidates.masks])
    vectors = next(iter(graders.values())).region_vectors(image, regions, masks)
    sentences = [e.sentence for e in group]
    out: dict[str, dict[int | str, GroundedBoxes]] = {}
    for mode, grader in graders.items():
        if args.answers == "all":
            scores = grader.evidence(vectors, regions, sentences, banks, args.margin)
        else:
            scores = grader.score(vectors, regions, sentences, banks)
            if args.detector_weight:
                scores = with_detector(scores, detector_scores(candidates).expand_as(scores), args.detector_weight)
        rows = {}
        for e, row in zip(group, scores, strict=True):
            order = row.argsort(descending=True)
            if args.answers == "all":
                order = nms(torch.tensor(regions, dtype=row.dtype), row, args.nms)
            rows[e.id] = GroundedBoxes([regions[i] for i in order.tolist()], row[order].tolist())
        out[mode] = rows
    return out


def detector_scores(candidates: Candidates) -> Tensor:
    """``[R]`` scores of the candidates."""
    if candidates.scores is None:
        raise UserError("--detector-weight needs proposals with scores; ground-truth boxes have none.")
    return torch.tensor(candidates.scores)


def subtracted_banks(args: argparse.Namespace, towers: Sequence[Any]) -> list[TextBank] | None:
    """Captions drawn by the seed, as a bank of each encoder; None where none is asked for."""
    if not args.subtract:
        return None
    records, counts = read_caption_records(args.subtract)
    print(counts.summary(str(args.subtract), len(records)))
    texts = sorted({t for r in records for t in (r.short or [r.long])})
    drawn = np.random.default_rng(args.seed).permutation(len(texts))[: args.subtract_count]
    return [build_bank(t, [texts[i] for i in drawn], templates="none") for t in towers]


def proposals(
    args: argparse.Namespace, wanted: list[Expression], everything: list[Expression]
) -> dict[int | str, Candidates]:
    """Candidate boxes of each sentence, by the kind asked for."""
    if args.proposals not in ("rpn", "detector"):
        return candidates_of(args.proposals, wanted, args.instances, args.max_proposals, known=everything)
    if not args.config or not args.detector:
        raise UserError(f"--proposals {args.proposals} needs --config and --detector.")
    options = args.cfg_options or {}
    return (rpn_boxes if args.proposals == "rpn" else detector_boxes)(args, wanted, options)


def rpn_boxes(
    args: argparse.Namespace, wanted: list[Expression], options: dict[str, Any]
) -> dict[int | str, Candidates]:
    """The RPN's best boxes, after the detector's own class-agnostic regression."""
    from smartclip_det.apis import SmartCLIPPredictor

    predictor = SmartCLIPPredictor.from_config(args.config, args.detector, device=args.device, cfg_options=options)
    by_image: dict[int | str, Candidates] = {}
    for e in tqdm(list({e.image_id: e for e in wanted}.values()), desc="proposals", unit="image"):
        predictor.set_image(open_rgb(args.images / e.file_name))
        boxes, scores = predictor.proposals(args.max_proposals)
        by_image[e.image_id] = Candidates(boxes.tolist(), scores.tolist())
    return {e.id: by_image[e.image_id] for e in wanted}


def detector_boxes(
    args: argparse.Namespace, wanted: list[Expression], options: dict[str, Any]
) -> dict[int | str, Candidates]:
    """The best boxes of any MMDetection detector; of one that reads text, for each sentence."""
    from smartclip_det.apis.proposals import DetectorProposals

    detector = DetectorProposals(args.config, args.detector, device=args.device, cfg_options=options)
    out: dict[int | str, Candidates] = {}
    by_image: dict[int | str, list[Expression]] = {}
    for e in wanted:
        by_image.setdefault(e.image_id, []).append(e)
    for mine in tqdm(by_image.values(), desc="proposals", unit="image"):
        image = np.asarray(open_rgb(args.images / mine[0].file_name))
        found = detector(image, [e.sentence for e in mine], args.max_proposals)
        shared: dict[int, Candidates] = {}
        for e, pair in zip(mine, found, strict=True):
            # One object where the detector reads no text: its regions are then encoded once.
            out[e.id] = shared.setdefault(id(pair), Candidates(pair[0].tolist(), pair[1].tolist()))
    return out


def report(
    args: argparse.Namespace, wanted: list[Expression], found: dict[str, dict[int | str, GroundedBoxes]],
    boxes: dict[int | str, Candidates], stamp: dict[str, object], left_out: int,
) -> None:  # fmt: skip
    """Write one predictions file per mask mode and all metrics in one JSON."""
    metrics: dict[str, dict[str, float]] = {}
    for mode, predictions in found.items():
        path = args.out.with_name(f"{args.out.stem}.{mode}{args.out.suffix}") if len(found) > 1 else args.out
        lines = (json.dumps({"id": k, "boxes": p.boxes, "scores": p.scores}) for k, p in predictions.items())
        write_whole(path, "".join(f"{line}\n" for line in lines))
        if args.answers == "all":
            metrics[mode] = {}
            print(f"{mode} ({args.proposals} proposals): {path}; score it with tools/evaluate.py grefcoco")
            continue
        metrics[mode] = referring_metrics(score_referring(wanted, predictions).overlap)
        print(f"{mode} ({args.proposals} proposals): {path}\n{format_metrics(metrics[mode])}")
    if args.answers == "one":
        offered = {k: c.boxes for k, c in boxes.items()}
        metrics["chance"] = {"acc50": chance_accuracy(wanted, offered)}
        metrics["best_possible"] = {"acc50": best_possible(wanted, offered)}
        for name in ("chance", "best_possible"):
            print(f"{name}\n{format_metrics(metrics[name])}")
    out = args.out.with_suffix(".metrics.json")
    counts = {"sentences": len(wanted), "left_out": left_out, "images": len({e.image_id for e in wanted})}
    write_results(out, stamp, metrics, counts=counts)
    left = f", {left_out} without exactly one target left out" if left_out else ""
    print(f"{counts['sentences']} sentences{left}. Written: {out}")


if __name__ == "__main__":
    run_tool(main)
