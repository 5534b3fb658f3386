r"""Does presence pay? Absent names under vocabularies of growing size, and "none" in grounding, with controls.

    smartclip-det study presence --encoder work_dirs/toy/smartclip/iter_2000.pth --text-norm masked \
        --ann data/toy/annotations/instances_val.json --images data/toy/images/val \
        --expressions data/toy/refs/finetune_toy_val.json --expression-images data/toy/images
    smartclip-det study presence --encoder smartclip_b16.pt --ann instances_val2017.json --images val2017 \
        --boxes detections.json --template "a photo of {article} {}." --limit 1000

Half of the pictures calibrate scales and offsets, the other half is measured. Foreign names are ImageNet's (or those of
--absent) that share no word with a name of the annotations. All detections are one ranking (AP pool), so that a box
with an absent name counts; false alarms are those above the score that finds half of the objects. Controls: the
presence of another picture, and of another name. What is calibrated goes into the policy: presence, presence_source,
presence_scale, presence_bias (options of ground and rescore).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smartclip_det.cli.options import add_device, add_encoder, add_out, at_least, encoder_source
from smartclip_det.core.words import PRESENCE_SOURCES, TEXT_NORMS


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add = parser.add_argument
    add_encoder(parser, open_clip=True)
    add("--ann", type=Path, required=True, help="COCO annotations of validation pictures")
    add("--images", type=Path, required=True, help="folder of file_name")
    add("--boxes", default="ground-truth", help='"ground-truth", or saved detections')
    add("--sizes", nargs="+", type=at_least(2), default=[10, 100, 1000], help="names of a vocabulary")
    add("--absent", default="imagenet_1000", help="foreign names: imagenet_1000, a known vocabulary, .txt or .json")
    add("--powers", nargs="+", type=float, default=[0.5, 1.0], help="exponents of presence")
    add("--sources", nargs="+", choices=PRESENCE_SOURCES, default=list(PRESENCE_SOURCES), help="what presence is of")
    add("--expressions", type=Path, help="referring expressions, some without a target")
    add("--expression-images", type=Path, help="folder of their file_name; default: --images")
    add("--template", default="{article} {}", help="text of a name")
    add("--mask-mode", choices=["hard", "soft", "off"], default="hard", help="how the texts' masks are used")
    add("--text-norm", choices=TEXT_NORMS, default="full", help="masked: for towers that were trained so")
    add("--learned-scale", action="store_true", help="keep the towers' own scale; only offsets are calibrated")
    add("--dense-size", type=int, default=0, help="side of the dense input; 0: the tower's")
    add("--max-boxes", type=at_least(1), default=100, help="saved boxes of a picture")
    add("--limit", type=at_least(0), default=0, help="first so many pictures only")
    add("--resamples", type=at_least(10), default=200, help="of the paired bootstrap over pictures")
    add("--seed", type=int, default=0, help="of halves and vocabularies")
    add_device(parser)
    add_out(parser, "work_dirs/presence.json", "JSON")


def run(args: argparse.Namespace) -> None:
    """Measure, and print a table for each vocabulary size and for grounding."""
    from smartclip_det.studies.presence import PresenceOptions, measure_presence

    given = {k: v for k, v in vars(args).items() if k in PresenceOptions.__dataclass_fields__}
    results, path = measure_presence(PresenceOptions(**{**given, "encoder": encoder_source(args)}))
    for source, found in results["calibration"].items():
        print(f"calibrated, {source}: " + ", ".join(f"{k} {v:.2f}" for k, v in found.items()))
    for size, rows in results["detection"].items():
        show(f"detection, {size} names", rows, ("ap50_pooled", "absent_per_image_r0.5", "foreign_per_image_r0.5"))
    if "grounding" in results:
        show("grounding, none at equal targets", results["grounding"], ("auroc", "n_acc_t0.8", "n_acc_t0.9"))
    print(f"written: {path}")


def show(title: str, rows: Mapping[str, Mapping[str, Any]], columns: tuple[str, ...]) -> None:
    """A table; behind it the gain of the first column over no presence, with its 95 % interval over pictures."""
    print(f"\n{title:46s}" + "".join(f"{c:>24s}" for c in columns) + f"  gain in {columns[0]}")
    for name, row in rows.items():
        cells = "".join(f"{row[c]:24.4f}" for c in columns)
        found = row["gain"][columns[0]]
        print(f"{name:46s}{cells}  {found['difference']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})")
