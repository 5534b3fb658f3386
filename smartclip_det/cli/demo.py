"""Detect phrases in images; writes an annotated image and a JSON for each input.

    smartclip-det demo street.jpg --texts "red mug" "left dog" --encoder smartclip-b16 --boxes torchvision
    smartclip-det demo street.jpg --texts "red mug" "left dog" --config CONFIG --checkpoint epoch_3.pth --encoder W.pt
    smartclip-det demo photos/ --vocabulary coco_80 --config CONFIG --checkpoint epoch_3.pth --encoder W.pt
    smartclip-det demo street.jpg --ground --texts "the dog left of the bench" --config CONFIG --checkpoint H.pth
    smartclip-det demo street.jpg --heatmap --texts "a red mug" --config CONFIG --checkpoint epoch_3.pth

Without --config, the towers work alone and without training: boxes come from a box source (torchvision, owlv2,
mm-grounding-dino, llmdet, mmdet:CONFIG:CHECKPOINT, or a file of boxes) and are ranked by their region vectors.

Each argument of --texts, or line of the vocabulary file, is one phrase. A score is the probability of the phrase
against background alone, so it does not depend on the other phrases. With --ground, the config may be a trained
grounding head; its scores are the probability that the expression refers to the box. --encoder is required if the
config does not name its towers and the checkpoint does not include them (detectors on frozen towers do not).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import Old, add_cfg_options, add_device, add_out, templates_of
from smartclip_det.core.errors import UserError
from smartclip_det.core.words import BOX_SOURCES

OLD = (Old("--text", "--texts"), Old("--out-dir", "--out"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add("images", nargs="+", type=Path, help="image files or folders")
    add("--texts", nargs="+", action="extend", default=[], help="phrases, one per argument")
    add("--vocabulary", help="class names: a known vocabulary (coco_80, ...), .txt (one per line), or .json list")
    add("--config", help="config of an open-vocabulary detector or grounding head: a file or a packaged name")
    add("--checkpoint", help="weights of --config; without it, heads are random")
    add("--encoder", help="towers: a file or a name of public weights; overrides towers.checkpoint of --config")
    add("--boxes", help=f"box source without --config: {', '.join(BOX_SOURCES)}, or a file")
    add("--ground", action="store_true", help="treat phrases as referring expressions; one panel each")
    add("--heatmap", action="store_true", help="also draw similarity maps and masks")
    add(
        "--threshold",
        type=float,
        help="minimum score drawn and written (default 0.5; with --ground 0, so that the best box is shown)",
    )
    add("--top-k", type=int, default=1, help="boxes per expression with --ground")
    add("--thresholds", type=Path, help="per-class thresholds file, from smartclip-det calibrate")
    add("--templates", nargs="+", default=["photo"], help="class-name prompts: a template set or own templates")
    add_out(parser, "work_dirs/demo", "output folder for images and JSON")
    add_device(parser)
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    """Process every image; exit code 2 if any could not be read."""
    if not args.texts and not args.vocabulary:
        raise UserError("No phrases given: use --texts PHRASE... or --vocabulary NAMES.")
    absent = [p for p in args.images if not p.exists()]
    if absent:
        raise UserError(f"{absent[0]} does not exist.")
    from smartclip_det.apis.demo import DemoOptions, demo
    from smartclip_det.models.vocabulary import resolve_names

    texts = [*args.texts, *(resolve_names(args.vocabulary) if args.vocabulary else [])]
    bad = demo(
        DemoOptions(
            images=args.images,
            texts=texts,
            config=args.config,
            checkpoint=args.checkpoint,
            ground=args.ground,
            heatmap=args.heatmap,
            threshold=args.threshold,
            top_k=args.top_k,
            out=args.out,
            device=args.device,
            cfg_options=args.cfg_options,
            templates=templates_of(args.templates),
            encoder=args.encoder,
            boxes=args.boxes,
            thresholds=args.thresholds,
        )
    )
    return 2 if bad else 0
