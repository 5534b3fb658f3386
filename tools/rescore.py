#!/usr/bin/env python
"""Classify boxes of any origin by an encoder's region vectors; no training.

    python tools/rescore.py --ann instances_val2017.json --images val2017 --boxes detections.json \
        --checkpoint smartclip_b16.pt --protocol ov-coco --out pred.json
    python tools/rescore.py --ann instances_val2017.json --images val2017 --boxes detections.json --keep-classes \
        --open-clip EVA02-B-16 --weights eva02_b16.safetensors --out pred.json
    python tools/rescore.py --ann instances_val2017.json --images val2017 --boxes ground-truth --arch SmartCLIP-tiny

Boxes: a COCO result list or a file of tools/test.py (their scores are objectness), or "ground-truth". Without
--keep-classes every box can become any class of the vocabulary; with it, a detection keeps its class and its score
becomes a geometric mean with the encoder's. Metrics are written beside the predictions.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from mmengine.structures import InstanceData
from tqdm import tqdm

from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ACTIVATIONS, BACKGROUNDS, ScoringPolicy
from smartclip_det.core.similarity import MASK_MODES
from smartclip_det.formats.annotations import GroundTruth, load_ground_truth
from smartclip_det.formats.pictures import picture_path
from smartclip_det.formats.predictions import check_predictions, read_predictions
from smartclip_det.models.grounding.zero_shot import VIEWS
from smartclip_det.models.regions import RegionEncoder
from smartclip_det.models.rescoring import (
    RescoreOptions,
    best_boxes,
    blend_own_scores,
    class_scores,
    detect_in_boxes,
)
from smartclip_det.models.towers.source import load_encoder
from smartclip_det.models.vocabulary import build_bank, resolve_names
from smartclip_det.protocols.detection_metric import OpenVocabMetric
from smartclip_det.protocols.registry import OF_DETECTIONS
from smartclip_det.protocols.stamp import file_hash
from smartclip_det.utils.cli import format_metrics, run_tool
from smartclip_det.utils.images import open_rgb


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ann", type=Path, required=True, help="COCO or LVIS annotations")
    parser.add_argument("--images", type=Path, required=True, help="folder of file_name")
    parser.add_argument("--boxes", default="ground-truth", help='"ground-truth", or saved detections')
    parser.add_argument("--vocabulary", help="names; default: those of the annotations")
    parser.add_argument("--protocol", choices=OF_DETECTIONS, default="coco")
    parser.add_argument("--split-file", help="own base and novel names for ov-coco")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", help="towers, any readable layout")
    source.add_argument("--arch", help="random weights of a named architecture: a control")
    source.add_argument("--open-clip", help="a SigLIP, EVA02 or other timm model of open_clip, by its name")
    parser.add_argument("--weights", help="weights of --open-clip; without it they are random")
    parser.add_argument("--tokenizer", help="folder of the tokenizer of --open-clip")
    parser.add_argument("--image-size", type=int, default=0, help="input side of --open-clip; 0: its own")
    parser.add_argument("--views", nargs="+", default=["dense"], choices=VIEWS)
    parser.add_argument("--dense-mode", default="value", help="last block of the dense map, see region_probe.py")
    parser.add_argument("--dense-size", type=int, default=0, help="side of the dense input; 0: the tower's")
    parser.add_argument("--templates", nargs="+", default=["photo"], help="a template set or own templates")
    parser.add_argument("--mask-mode", choices=MASK_MODES, default="hard")
    parser.add_argument("--activation", choices=ACTIVATIONS, default="softmax")
    parser.add_argument("--background", choices=[b for b in BACKGROUNDS if b != "learned"], default="zero")
    parser.add_argument("--temperature", type=float, default=100.0)
    parser.add_argument("--objectness-power", type=float, default=0.5, help="exponent of a box's own score")
    parser.add_argument("--keep-classes", action="store_true", help="detections keep their class")
    parser.add_argument("--own-power", type=float, default=0.5, help="with --keep-classes: share of their own score")
    parser.add_argument("--proposal-nms", type=float, default=0.7, help="class-agnostic NMS among boxes")
    parser.add_argument("--max-proposals", type=int, default=300)
    parser.add_argument("--score-threshold", type=float, default=0.001)
    parser.add_argument("--nms-iou", type=float, default=0.5)
    parser.add_argument("--max-detections", type=int, default=100, help="per image; LVIS wants 300")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/rescored.json"), help=".json or .safetensors")
    return parser.parse_args()


def main() -> None:
    """Encode each image once, score its boxes, write predictions and metrics."""
    args = parse_args()
    options = RescoreOptions(
        objectness_power=args.objectness_power, own_power=args.own_power, score_threshold=args.score_threshold,
        nms_iou=args.nms_iou, max_detections=args.max_detections,
    )  # fmt: skip
    policy = ScoringPolicy(
        mask_mode=args.mask_mode, activation=args.activation, background=args.background,
        dense_temperature=args.temperature,
        sigmoid_reference="bias" if args.background == "zero" else "background",
    )  # fmt: skip
    truth = load_ground_truth(args.ann, need_annotations=args.boxes == "ground-truth")
    names = resolve_names(args.vocabulary) if args.vocabulary else list(truth.categories.values())
    if args.keep_classes and args.boxes == "ground-truth":
        raise UserError("--keep-classes with --boxes ground-truth would give every box its true class.")
    found = candidates(args, truth)
    towers = load_encoder(encoder_source(args), args.device)
    encoder = RegionEncoder(towers, dense_size=args.dense_size, dense_mode=args.dense_mode)
    templates = args.templates[0] if len(args.templates) == 1 and "{" not in args.templates[0] else args.templates
    bank = build_bank(towers, names, templates=templates)
    metric = OpenVocabMetric(
        str(args.ann), protocol=args.protocol, split_file=args.split_file, out_file=str(args.out),
        metrics_file=str(args.out.with_suffix(".metrics.json")),
        stamp={
            "family": "rescoring", "boxes": args.boxes, "keep_classes": args.keep_classes, "views": args.views,
            "dense_mode": args.dense_mode, "dense_size": encoder.dense_size, "options": vars(options),
            "proposal_nms": args.proposal_nms, "max_proposals": args.max_proposals, "policy": policy.to_dict(),
            "bank": bank.provenance,
            "boxes_sha256": None if args.boxes == "ground-truth" else file_hash(args.boxes),
        },
    )  # fmt: skip
    metric.dataset_meta = {"classes": tuple(names)}
    place = {n: i for i, n in enumerate(names)}
    for info in tqdm(truth.data["images"], desc="rescoring", unit="image"):
        boxes, own, own_names = found.get(info["id"], (torch.zeros(0, 4), torch.zeros(0), []))
        image = open_rgb(picture_path(args.images, info, str(args.ann)))
        if args.keep_classes:
            rows = torch.tensor([i for i, n in enumerate(own_names) if n in place], dtype=torch.long)
        else:
            rows = best_boxes(boxes, own, args.proposal_nms, args.max_proposals)
        boxes, own = boxes[rows], own[rows]
        views = [encoder.vectors(image, boxes.tolist(), v) for v in args.views]
        scores = class_scores(views, bank, policy)
        if args.keep_classes:
            labels = torch.tensor([place[own_names[i]] for i in rows.tolist()], dtype=torch.long)
            values = blend_own_scores(own, labels, scores, options)
        else:
            rows, labels, values = detect_in_boxes(boxes, own, scores, options)
            boxes = boxes[rows]
        instances = InstanceData(bboxes=boxes, scores=values.float(), labels=labels)
        metric.process(None, [{"img_id": info["id"], "pred_instances": instances}])
    metrics = metric.evaluate(len(truth.data["images"]))
    print(format_metrics({k: v for k, v in metrics.items() if isinstance(v, float)}))
    print(f"written: {args.out} and {args.out.with_suffix('.metrics.json')}")


def encoder_source(args: argparse.Namespace) -> dict[str, Any]:
    """The config of the encoder."""
    if args.open_clip:
        return {"open_clip": args.open_clip, "checkpoint": args.weights, "tokenizer": args.tokenizer,
                "image_size": args.image_size}  # fmt: skip
    return {"checkpoint": args.checkpoint} if args.checkpoint else {"arch": args.arch}


def candidates(args: argparse.Namespace, truth: GroundTruth) -> dict[Any, tuple[torch.Tensor, torch.Tensor, list[str]]]:
    """Boxes ``[R, 4]`` xyxy, scores ``[R]`` and class names of each image."""
    if args.boxes == "ground-truth":
        rows = [{**a, "score": 1.0} for a in truth.data["annotations"] if not a.get("iscrowd")]
    else:
        rows, _ = check_predictions(read_predictions(args.boxes, truth), truth)  # type: ignore[assignment]
    by_image: dict[Any, list[Any]] = defaultdict(list)
    for r in rows:
        by_image[r["image_id"]].append(r)
    out = {}
    for image_id, mine in by_image.items():
        boxes = torch.tensor([r["bbox"] for r in mine], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        names = [truth.categories.get(r["category_id"], "") for r in mine]
        out[image_id] = boxes, torch.tensor([r["score"] for r in mine], dtype=torch.float32), names
    return out


if __name__ == "__main__":
    run_tool(main)
