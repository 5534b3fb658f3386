"""Per-class score thresholds from a few labelled images, with their precision and recall on held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartclip_det.apis.inputs import check_count, check_threshold
from smartclip_det.apis.tiles import answer_images, check_tile
from smartclip_det.core.errors import UserError
from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.formats.pictures import check_pictures, picture_path
from smartclip_det.formats.thresholds import Thresholds
from smartclip_det.metrics.bootstrap import coco_matches
from smartclip_det.metrics.thresholds import OWN_FROM, ClassThreshold, calibrate_classes, with_interval
from smartclip_det.protocols.stamp import file_hash

#: Detections below LOWEST are ignored; FALLBACK is the threshold of a class without correct detections.
LOWEST, FALLBACK = 0.01, 0.5


@dataclass(frozen=True)
class CalibrateOptions:
    """Options of threshold calibration.

    Attributes:
        ann: COCO json of a few exhaustively labelled images.
        images: image folder.
        out: output thresholds file.
        least_precision: maximise recall at this precision, in (0, 1]; None: maximise F1.
        batch_size: images (or tiles) per batch.
        tile: (side, overlap) of tiles in pixels; None: whole images.
        max_detections: maximum detections per image or tile.
    """

    ann: Path
    images: Path
    out: Path = Path("work_dirs/thresholds.json")
    least_precision: float | None = None
    batch_size: int = 8
    tile: tuple[int, int] | None = None
    max_detections: int = 100


def calibrate(options: CalibrateOptions, predictor: Any) -> list[ClassThreshold]:
    """Run the predictor on the labelled images, choose the thresholds and write them.

    Args:
        options: calibration options.
        predictor: any object with ``set_vocabulary`` and ``detect_images``.

    Returns:
        One entry per class of the file, in file order.

    Raises:
        UserError: for missing or broken images, a file without boxes, and options out of range.
    """
    check_count("batch_size", options.batch_size)
    if options.tile is not None:
        check_tile(options.tile)
    if options.least_precision is not None and not check_threshold(options.least_precision, "least_precision"):
        raise UserError("least_precision must be above 0.")
    truth = load_ground_truth(options.ann)
    if not truth.data["annotations"]:
        raise UserError(f"{options.ann} has no boxes; thresholds are chosen on labelled boxes.")
    check_pictures(truth, options.images)
    names = list(truth.categories.values())
    predictor.set_vocabulary(names)
    images = truth.data["images"]
    answers = answer_images(
        predictor,
        [picture_path(options.images, i, truth.path) for i in images],
        batch_size=options.batch_size,
        tile=options.tile,
        threshold=LOWEST,
        max_detections=options.max_detections,
    )
    ids = {name: number for number, name in truth.categories.items()}
    results = [row for i, detections in zip(images, answers, strict=True) for row in detections.to_coco(i["id"], ids)]
    limit = max(100, options.max_detections)
    rows, shared = calibrate_classes(
        coco_matches(truth, results, names, max_dets=limit), FALLBACK, options.least_precision
    )
    facts = {
        "chosen": "best F1" if options.least_precision is None else f"precision {options.least_precision:g}",
        "ann": str(options.ann),
        "ann_sha256": file_hash(options.ann),
        "pictures": len(images),
        "predictor": getattr(predictor, "protocol", {}),
        "tile": options.tile,
        "held_out": {r.name: {"boxes": r.boxes, "hits": r.hits, "misses": r.misses, "own": r.own} for r in rows},
    }
    Thresholds({r.name: r.threshold for r in rows if r.own}, shared, facts).write(options.out)
    return rows


def calibration_table(rows: Sequence[ClassThreshold]) -> str:
    """Format a table: threshold, box count, precision and recall with intervals, per class and overall."""
    width = max([len(r.name) for r in rows] + [9])
    lines = [f"{'class':{width}s}  threshold  boxes  precision            recall"]
    lines += [
        f"{r.name:{width}s}  {r.threshold:9.4f}{' ' if r.own else '*'} {r.boxes:5d}  {_share(r.precision):20s} "
        f"{_share(r.recall)}"
        for r in rows
    ]
    hits, misses, boxes = (sum(getattr(r, k) for r in rows) for k in ("hits", "misses", "boxes"))
    lines.append(
        f"{'all':{width}s}  {'':10s} {boxes:5d}  {_share(with_interval(hits, hits + misses)):20s} "
        f"{_share(with_interval(hits, boxes))}"
    )
    if not all(r.own for r in rows):
        lines.append(f"* fewer than {OWN_FROM} boxes, or no correct detection: the pooled threshold of all classes")
    lines.append(
        "Precision and recall at IoU 0.5 on held-out images, with 95 % intervals "
        "(Wilson) that treat boxes as independent."
    )
    return "\n".join(lines)


def _share(value: tuple[float, float, float] | None) -> str:
    return "n/a" if value is None else "{:.3f} ({:.3f}-{:.3f})".format(*value)
