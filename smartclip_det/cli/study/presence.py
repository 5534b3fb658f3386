r"""Does presence scoring help? Absent names with growing vocabularies, and no-target sentences, with controls.

    smartclip-det study presence --encoder work_dirs/toy/smartclip/iter_2000.pth --text-norm masked \
        --ann data/toy/annotations/instances_val.json --images data/toy/images/val \
        --expressions data/toy/refs/finetune_toy_val.json --expression-images data/toy/images
    smartclip-det study presence --encoder smartclip_b16.pt --ann instances_val2017.json --images val2017 \
        --boxes detections.json --template "a photo of {article} {}." --limit 1000

Half of the images calibrate scales and biases, the other half is evaluated. Absent names come from ImageNet (or
--absent) and share no word with a name of the annotations. All detections are pooled into one ranking (pooled AP), so a
box with an absent name counts as a false positive; false alarms are counted at the score where half of the objects are
found. Controls: the presence score of another image, and of another name. The calibrated values go into the scoring
policy: presence, presence_source, presence_scale, presence_bias (also options of ground and rescore).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smartclip_det.cli.options import add_dense_size, add_device, add_encoder, add_out, at_least, encoder_source, filled
from smartclip_det.core.words import PRESENCE_SOURCES, TEXT_NORMS


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add_encoder(parser, open_clip=True)
    add("--ann", type=Path, required=True, help="COCO annotations of the validation images")
    add("--images", type=Path, required=True, help="image folder")
    add("--boxes", default="ground-truth", help='"ground-truth", or saved detections')
    add("--sizes", nargs="+", type=at_least(2), default=[10, 100, 1000], help="vocabulary sizes")
    add(
        "--absent",
        default="imagenet_1000",
        help="source of absent names: imagenet_1000, a known vocabulary, .txt or .json",
    )
    add("--powers", nargs="+", type=float, default=[0.5, 1.0], help="exponents of presence")
    add("--sources", nargs="+", choices=PRESENCE_SOURCES, default=list(PRESENCE_SOURCES), help="presence sources")
    add("--expressions", type=Path, help="referring expressions, some without a target")
    add("--expression-images", type=Path, help="image folder of --expressions; default: --images")
    add("--template", default="{article} {}", help="template that turns a name into a text")
    add("--mask-mode", choices=["hard", "soft", "off"], default="hard", help="how the texts' masks are used")
    add("--text-norm", choices=TEXT_NORMS, default="full", help="masked: for towers trained with it")
    add("--learned-scale", action="store_true", help="keep the towers' learned scale; only biases are calibrated")
    add_dense_size(parser)
    add("--max-boxes", type=at_least(1), default=100, help="saved boxes per image")
    add("--limit", type=at_least(0), default=0, help="use only the first N images; 0: all")
    add("--resamples", type=at_least(10), default=200, help="resamples of the paired bootstrap over images")
    add("--seed", type=int, default=0, help="seed of the halves and vocabularies")
    add_device(parser)
    add_out(parser, "work_dirs/presence.json", "JSON output")


def run(args: argparse.Namespace) -> None:
    """Measure, and print a table for each vocabulary size and for grounding."""
    from smartclip_det.studies.presence import PresenceOptions, measure_presence

    results, path = measure_presence(filled(PresenceOptions, args, encoder=encoder_source(args)))
    for source, values in results["calibration"].items():
        print(f"calibrated, {source}: " + ", ".join(f"{k} {v:.2f}" for k, v in values.items()))
    for size, rows in results["detection"].items():
        show(f"detection, {size} names", rows, ("ap50_pooled", "absent_per_image_r0.5", "foreign_per_image_r0.5"))
    if "grounding" in results:
        show("grounding, none at equal targets", results["grounding"], ("auroc", "n_acc_t0.8", "n_acc_t0.9"))
    print(f"written: {path}")


def show(title: str, rows: Mapping[str, Mapping[str, Any]], columns: tuple[str, ...]) -> None:
    """Print a table; the last column is the gain in the first metric over no presence, with its 95 % interval."""
    print(f"\n{title:46s}" + "".join(f"{c:>24s}" for c in columns) + f"  gain in {columns[0]}")
    for name, row in rows.items():
        cells = "".join(f"{row[c]:24.4f}" for c in columns)
        gain = row["gain"][columns[0]]
        print(f"{name:46s}{cells}  {gain['difference']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})")
