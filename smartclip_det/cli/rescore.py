r"""Classify boxes from any detector by an encoder's region vectors, without training.

    smartclip-det rescore --ann instances_val2017.json --images val2017 --boxes detections.json \
        --encoder smartclip_b16.pt --protocol ov-coco --out pred.json
    smartclip-det rescore --ann instances_val2017.json --images val2017 --boxes detections.json --keep-classes \
        --open-clip EVA02-B-16 --weights eva02_b16.safetensors --out pred.json
    smartclip-det rescore --ann instances_val2017.json --images val2017 --boxes ground-truth --arch SmartCLIP-tiny

Boxes: a COCO result list, a file written by smartclip-det test (its scores are taken as objectness), the output of
smartclip-det demo (a JSON or the folder), or "ground-truth". By default each box can become any class of the
vocabulary; with --keep-classes, a detection keeps its class and its score becomes a geometric mean with the encoder's
score. Metrics are written next to the predictions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import (
    Old,
    add_dense,
    add_device,
    add_encoder,
    add_out,
    add_presence,
    add_templates,
    add_views,
    add_vocabulary,
    encoder_source,
    filled,
    presence_of,
    templates_of,
)
from smartclip_det.core.mask_modes import MASK_MODES
from smartclip_det.core.words import ACTIVATIONS, BACKGROUNDS
from smartclip_det.protocols.options import OF_DETECTIONS
from smartclip_det.utils.cli import format_metrics

OLD = (Old("--checkpoint", "--encoder"), Old("--score-threshold", "--threshold"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument_group("images and protocol").add_argument
    add("--ann", type=Path, required=True, help="COCO or LVIS annotations")
    add("--images", type=Path, required=True, help="image folder")
    add("--protocol", choices=OF_DETECTIONS, default="coco", help="evaluation protocol")
    add("--split-file", help="ov-coco: JSON with custom base and novel names")

    encoder = parser.add_argument_group("encoder and region vectors")
    add_encoder(encoder, open_clip=True)
    add_device(encoder)
    add_views(encoder)
    add_dense(encoder)

    add = parser.add_argument_group("boxes").add_argument
    add("--boxes", default="ground-truth", help='"ground-truth", or saved detections')
    add("--keep-classes", action="store_true", help="keep the class of each detection")
    add("--proposal-nms", type=float, default=0.7, help="IoU threshold of class-agnostic NMS on the input boxes")
    add("--max-proposals", type=int, default=300, help="input boxes per image")

    vocabulary = parser.add_argument_group("vocabulary")
    add_vocabulary(vocabulary, default="those of the annotations")
    add_templates(vocabulary)

    scores = parser.add_argument_group("scores")
    add = scores.add_argument
    add("--mask-mode", choices=MASK_MODES, default="hard", help="how the texts' masks are used")
    add("--activation", choices=ACTIVATIONS, default="softmax", help="activation that turns cosines into scores")
    add("--background", choices=[b for b in BACKGROUNDS if b != "learned"], default="zero", help="background rule")
    add("--temperature", type=float, default=100.0, help="temperature of the scores")
    add_presence(scores)
    add("--objectness-power", type=float, default=0.5, help="exponent of a box's input score")
    add(
        "--own-power",
        type=float,
        default=0.5,
        help="with --keep-classes: weight of the input score in the geometric mean",
    )
    add("--threshold", type=float, default=0.001, help="minimum score written")
    add("--nms-iou", type=float, default=0.5, help="IoU threshold of per-class NMS")
    add("--max-detections", type=int, default=100, help="detections per image; LVIS uses 300")

    output = parser.add_argument_group("output")
    add_out(output, "work_dirs/rescored.json", "predictions, .json or .safetensors")


def run(args: argparse.Namespace) -> None:
    """Rescore the boxes and print the metrics."""
    from smartclip_det.apis.region_encoding import RegionEncoding
    from smartclip_det.apis.rescoring import InputBoxes, RescoreFileOptions, rescore_file
    from smartclip_det.core.scoring_policy import ScoringPolicy
    from smartclip_det.models.rescoring import RescoreOptions

    policy = ScoringPolicy(
        mask_mode=args.mask_mode,
        activation=args.activation,
        background=args.background,
        dense_temperature=args.temperature,
        sigmoid_reference="bias" if args.background == "zero" else "background",
        **presence_of(args),
    )
    boxes = InputBoxes(args.boxes, keep_classes=args.keep_classes, nms_iou=args.proposal_nms, limit=args.max_proposals)
    options = filled(
        RescoreFileOptions,
        args,
        encoder=filled(RegionEncoding, args, towers=[encoder_source(args)]),
        boxes=boxes,
        templates=templates_of(args.templates),
        policy=policy,
        scores=filled(RescoreOptions, args, score_threshold=args.threshold),
    )
    print(format_metrics(rescore_file(options)))
    print(f"written: {args.out} and {args.out.with_suffix('.metrics.json')}")
