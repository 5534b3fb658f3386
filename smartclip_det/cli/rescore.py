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

from smartclip_det.cli.options import Old, add_device, add_encoder, add_out, add_presence, encoder_source, templates_of
from smartclip_det.core.mask_modes import MASK_MODES
from smartclip_det.core.words import ACTIVATIONS, BACKGROUNDS, DENSE_MODES, VIEWS
from smartclip_det.protocols.options import OF_DETECTIONS
from smartclip_det.utils.cli import format_metrics

OLD = (Old("--checkpoint", "--encoder"), Old("--score-threshold", "--threshold"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add("--ann", type=Path, required=True, help="COCO or LVIS annotations")
    add("--images", type=Path, required=True, help="image folder")
    add("--boxes", default="ground-truth", help='"ground-truth", or saved detections')
    add(
        "--vocabulary",
        help="class names: a known vocabulary (coco_80, ...), .txt or .json; default: those of the annotations",
    )
    add("--protocol", choices=OF_DETECTIONS, default="coco", help="evaluation protocol")
    add("--split-file", help="ov-coco: JSON with custom base and novel names")
    add_encoder(parser, open_clip=True)
    add(
        "--views",
        nargs="+",
        default=["dense"],
        choices=VIEWS,
        help="how region vectors are computed; several are averaged",
    )
    add("--dense-mode", default="value", choices=DENSE_MODES, help="mode of the last block for the dense map")
    add("--dense-size", type=int, default=0, help="side of the dense input; 0: the tower's input size")
    add("--templates", nargs="+", default=["photo"], help="a template set, or custom templates")
    add("--mask-mode", choices=MASK_MODES, default="hard", help="how the texts' masks are used")
    add("--activation", choices=ACTIVATIONS, default="softmax", help="activation that turns cosines into scores")
    add("--background", choices=[b for b in BACKGROUNDS if b != "learned"], default="zero", help="background rule")
    add("--temperature", type=float, default=100.0, help="temperature of the scores")
    add_presence(parser)
    add("--objectness-power", type=float, default=0.5, help="exponent of a box's input score")
    add("--keep-classes", action="store_true", help="keep the class of each detection")
    add(
        "--own-power",
        type=float,
        default=0.5,
        help="with --keep-classes: weight of the input score in the geometric mean",
    )
    add("--proposal-nms", type=float, default=0.7, help="IoU threshold of class-agnostic NMS on the input boxes")
    add("--max-proposals", type=int, default=300, help="input boxes per image")
    add("--threshold", type=float, default=0.001, help="minimum score written")
    add("--nms-iou", type=float, default=0.5, help="IoU threshold of per-class NMS")
    add("--max-detections", type=int, default=100, help="detections per image; LVIS uses 300")
    add_device(parser)
    add_out(parser, "work_dirs/rescored.json", "predictions, .json or .safetensors")


def run(args: argparse.Namespace) -> None:
    """Rescore the boxes and print the metrics."""
    from smartclip_det.apis.rescoring import RescoreFileOptions, rescore_file
    from smartclip_det.core.scoring_policy import ScoringPolicy
    from smartclip_det.models.rescoring import RescoreOptions

    metrics = rescore_file(
        RescoreFileOptions(
            ann=args.ann,
            images=args.images,
            encoder=encoder_source(args),
            boxes=args.boxes,
            vocabulary=args.vocabulary,
            protocol=args.protocol,
            split_file=args.split_file,
            views=args.views,
            dense_mode=args.dense_mode,
            dense_size=args.dense_size,
            templates=templates_of(args.templates),
            keep_classes=args.keep_classes,
            proposal_nms=args.proposal_nms,
            max_proposals=args.max_proposals,
            device=args.device,
            out=args.out,
            policy=ScoringPolicy(
                mask_mode=args.mask_mode,
                activation=args.activation,
                background=args.background,
                dense_temperature=args.temperature,
                sigmoid_reference="bias" if args.background == "zero" else "background",
                presence=args.presence,
                presence_source=args.presence_source,
                presence_scale=args.presence_scale,
                presence_bias=args.presence_bias,
            ),
            scores=RescoreOptions(
                objectness_power=args.objectness_power,
                own_power=args.own_power,
                score_threshold=args.threshold,
                nms_iou=args.nms_iou,
                max_detections=args.max_detections,
            ),
        )
    )
    print(format_metrics(metrics))
    print(f"written: {args.out} and {args.out.with_suffix('.metrics.json')}")
