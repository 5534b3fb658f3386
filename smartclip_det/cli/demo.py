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

from smartclip_det.cli.options import (
    Old,
    add_names,
    add_out,
    add_predictor,
    add_templates,
    check_names,
    filled,
    names_of,
    templates_of,
)
from smartclip_det.core.errors import UserError

OLD = (Old("--text", "--texts"), Old("--out-dir", "--out"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    queries = parser.add_argument_group("images and phrases")
    add = queries.add_argument
    add("images", nargs="+", type=Path, help="image files or folders")
    add_names(queries, "phrases")
    add_templates(queries)
    add("--ground", action="store_true", help="treat phrases as referring expressions; one panel each")

    predictor = parser.add_argument_group("predictor")
    add_predictor(predictor, what="an open-vocabulary detector or grounding head")

    output = parser.add_argument_group("output")
    add = output.add_argument
    add("--heatmap", action="store_true", help="also draw similarity maps and masks")
    add(
        "--threshold",
        type=float,
        help="minimum score drawn and written (default 0.5; with --ground 0, so that the best box is shown)",
    )
    add("--top-k", type=int, default=1, help="boxes per expression with --ground")
    add("--thresholds", type=Path, help="per-class thresholds file, from smartclip-det calibrate")
    add_out(output, "work_dirs/demo", "output folder for images and JSON")


def run(args: argparse.Namespace) -> int:
    """Process every image; exit code 2 if any could not be read."""
    check_names(args, "phrases")
    absent = [p for p in args.images if not p.exists()]
    if absent:
        raise UserError(f"{absent[0]} does not exist.")
    from smartclip_det.apis.demo import DemoOptions, demo
    from smartclip_det.apis.predictor_options import PredictorOptions

    predictor = filled(PredictorOptions, args, templates=templates_of(args.templates))
    bad = demo(filled(DemoOptions, args, texts=names_of(args), predictor=predictor))
    return 2 if bad else 0
