r"""Find training images that occur in a benchmark's validation or test splits, and write a clean training set.

    smartclip-det data check-leakage --train instances_train2017.json --bench "refcoco=refs(unc).p" \
        "refcocog=refcocog/refs(umd).p" --clean instances_train2017_clean.json
    smartclip-det data check-leakage --train share-captioner_coco_lcs_sam_1246k_1107.json --bench "refcoco=refs.p"
    smartclip-det data check-leakage --train instances_train2014.json --bench "refcoco=refcoco/refs(unc).p" \
        "refcocog=refcocog/refs(umd).p" --leaked refer/leaked_images.txt     # images to exclude from mixed training

Training sets: COCO or LVIS annotations, caption files, or a list of file names. Benchmarks: any expression file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from smartclip_det.core.errors import UserError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    parser.add_argument("--train", type=Path, required=True, help="training set")
    parser.add_argument("--bench", nargs="+", required=True, metavar="NAME=FILE", help="benchmark expressions")
    parser.add_argument(
        "--clean", type=Path, help="write the training set without leaked images (COCO, LVIS; else a list of names)"
    )
    parser.add_argument("--leaked", type=Path, help="write the names of the leaked images")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/leakage.json"), help="JSON with the counts")


def run(args: argparse.Namespace) -> None:
    """Compare, print a table and write the files."""
    from smartclip_det.datasets.leakage import find_leaks, training_images
    from smartclip_det.formats.expressions.loading import load_expressions
    from smartclip_det.protocols.stamp import file_hash, protocol_stamp, write_results
    from smartclip_det.utils.files import write_whole

    training = training_images(args.train, print)
    leaks = []
    for item in args.bench:
        name, equals, file = item.partition("=")
        if not equals:
            raise UserError(f"Expected NAME=FILE; {item!r} has no '='.")
        leaks += find_leaks(training, name, load_expressions(file, needs_sentences=False))
    print(f"{len(training):,} training images")
    print(f"{'benchmark':16s} {'split':8s} {'images':>8s} {'in training':>12s} sentences")
    for leak in leaks:
        print(f"{leak.benchmark:16s} {leak.split:8s} {leak.images:8,d} {len(leak.seen):12,d} {leak.sentences:9,d}")
    leaked = set().union(*(leak.seen for leak in leaks))
    facts = {
        f"{x.benchmark}.{x.split}": {"images": x.images, "seen": len(x.seen), "sentences": x.sentences} for x in leaks
    }
    stamp = protocol_stamp("leakage", train_sha256=file_hash(args.train), training_images=len(training))
    write_results(args.out, stamp, {"leaked_images": len(leaked), "splits": facts})
    if args.clean:
        write_clean(args, training, leaked)
    if args.leaked:
        write_whole(args.leaked, "".join(f"{n}\n" for k, names in training.items() if k in leaked for n in names))
        print(f"leaked: {args.leaked}")
    print(f"{len(leaked):,} training images occur in these splits: {args.out}")


def write_clean(args: argparse.Namespace, training: dict[str, list[str]], leaked: set[str]) -> None:
    """Write the training set without leaked images, in its own format; for captions and lists, a list of names."""
    from smartclip_det.datasets.leakage import without
    from smartclip_det.formats.captions import detect_layout
    from smartclip_det.utils.files import write_whole

    clean = [n for k, names in training.items() if k not in leaked for n in names]
    if args.train.suffix == ".json" and detect_layout(args.train) == "coco":
        write_whole(args.clean, json.dumps(without(args.train, leaked)))
    else:
        write_whole(args.clean, "".join(f"{n}\n" for n in clean))
    print(f"clean: {len(clean):,} images in {args.clean}")
