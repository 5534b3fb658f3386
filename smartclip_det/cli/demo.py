"""Find phrases in photographs: a picture and a JSON for each image.

    smartclip-det demo street.jpg --texts "red mug" "left dog" --encoder smartclip-b16 --boxes torchvision
    smartclip-det demo street.jpg --texts "red mug" "left dog" --config CONFIG --checkpoint epoch_3.pth --encoder W.pt
    smartclip-det demo photos/ --vocabulary coco_80 --config CONFIG --checkpoint epoch_3.pth --encoder W.pt
    smartclip-det demo street.jpg --ground --texts "the dog left of the bench" --config CONFIG --checkpoint H.pth
    smartclip-det demo street.jpg --heatmap --texts "a red mug" --config CONFIG --checkpoint epoch_3.pth

Without --config towers alone answer, without training: boxes of a source (torchvision, owlv2, mm-grounding-dino,
llmdet, mmdet:CONFIG:CHECKPOINT, or a file of boxes), ranked by their region vectors.

One phrase is one argument, or one line of the vocabulary file. A score is the probability of the phrase against
background alone: it does not change with the other phrases. With --ground the config may be of a trained grounding
head, whose scores are the probability that a box is meant. --encoder is needed where the config does not name its
towers and the checkpoint does not hold them (a detector on frozen towers does not).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import Old, add_cfg_options, add_device, add_out
from smartclip_det.core.errors import UserError
from smartclip_det.core.words import BOX_SOURCES

OLD = (Old("--text", "--texts"), Old("--out-dir", "--out"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add = parser.add_argument
    add("images", nargs="+", type=Path, help="image files or folders")
    add("--texts", nargs="+", default=[], help="phrases, one per argument")
    add("--vocabulary", help="names: a known name (coco_80, ...), .txt with one a line, or .json list")
    add("--config", help="of an open-vocabulary detector or a grounding head: a file, or a known name")
    add("--checkpoint", help="its weights; without, heads are random")
    add("--encoder", help="towers: a name of public weights or a file; with --config its towers.checkpoint")
    add("--boxes", help=f"without --config, where boxes come from: {', '.join(BOX_SOURCES)}, or a file")
    add("--ground", action="store_true", help="phrases are referring expressions; a panel for each")
    add("--heatmap", action="store_true", help="also draw similarity maps and masks")
    add(
        "--threshold",
        type=float,
        help="lowest score drawn and written (default 0.5; with --ground 0: the best box is shown)",
    )
    add("--top-k", type=int, default=1, help="boxes per expression with --ground")
    add("--thresholds", type=Path, help="file of lowest scores by class, of smartclip-det calibrate")
    add_out(parser, "work_dirs/demo", "folder of pictures and JSON")
    add_device(parser)
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    """Answer every image; exit code 2 where one could not be used."""
    if not args.texts and not args.vocabulary:
        raise UserError("Nothing to look for: give --texts PHRASE... or --vocabulary NAMES.")
    absent = [p for p in args.images if not p.exists()]
    if absent:
        raise UserError(f"No image or folder at {absent[0]}.")
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
            encoder=args.encoder,
            boxes=args.boxes,
            thresholds=args.thresholds,
        )
    )
    return 2 if bad else 0
