"""Review page for the labels of a folder: least certain images first, linked to the originals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from smartclip_det.formats.label_log import PictureLabels
from smartclip_det.utils.images import open_rgb
from smartclip_det.visualization.draw import draw_boxes
from smartclip_det.visualization.report import ReportPage

#: Longer side of a thumbnail, and maximum number of boxes drawn in it.
SIDE, BOXES = 320, 12


def certainty(picture: PictureLabels, thresholds: np.ndarray) -> float:
    """Smallest distance of a score to its threshold; 1 without detections.

    Args:
        picture: labels with all detections, including those below their threshold.
        thresholds: ``[C]`` threshold of each label.
    """
    return min((abs(s - thresholds[k]) for s, k in zip(picture.scores, picture.labels, strict=True)), default=1.0)


def review_page(
    pictures: Sequence[PictureLabels],
    names: Sequence[str],
    thresholds: np.ndarray,
    photos: Path,
    address: str,
    *,
    left_out: Mapping[str, Sequence[str]],
    count: int,
) -> ReportPage:
    """Build the page.

    Args:
        pictures: images that were read, with all their detections.
        names: label names.
        thresholds: ``[C]``.
        photos: folder of the images.
        address: address of that folder relative to the page.
        left_out: images that were skipped, by reason.
        count: maximum number of images to show.
    """
    kept = [p.above(thresholds) for p in pictures]
    boxes = Counter(k for p in kept for k in p.labels)
    seen_in = Counter(k for p in kept for k in set(p.labels))
    page = ReportPage("Label review")
    total, empty = sum(boxes.values()), sum(not p.labels for p in kept)
    page.text(
        f"{len(kept):,} images, {total:,} boxes of {len(boxes):,} of {len(names):,} names; {empty:,} images "
        f"without a box; {sum(map(len, left_out.values())):,} files skipped."
    )
    page.heading("Counts by class")
    rows = [[names[k], f"{n:,}", f"{seen_in[k]:,}", float(thresholds[k])] for k, n in boxes.most_common()]
    page.table(["class", "boxes", "images", "threshold"], rows, digits=2)
    if len(boxes) < len(names):
        page.text(f"{len(names) - len(boxes):,} names have no boxes.", note=True)
    for reason, files in left_out.items():
        page.text(f"Skipped {len(files):,}: {reason} (first: {files[0]}).", note=True)
    order = sorted(range(len(pictures)), key=lambda n: (certainty(pictures[n], thresholds), pictures[n].file))[:count]
    page.heading("Least certain first")
    page.text(
        f"The {len(order):,} images with a score nearest to a threshold, above or below it. Click an image to open it.",
        note=True,
    )
    page.links(
        [
            (
                _thumbnail(kept[n], names, photos),
                _caption(pictures[n], kept[n], names, thresholds),
                f"{address}/{quote(pictures[n].file)}",
            )
            for n in order
        ]
    )
    return page


def _thumbnail(picture: PictureLabels, names: Sequence[str], photos: Path) -> Image.Image:
    image = open_rgb(photos / picture.file)
    scale = min(1.0, SIDE / max(image.size))
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    best = sorted(range(len(picture.scores)), key=lambda n: -picture.scores[n])[:BOXES]
    boxes = [[v * scale for v in picture.boxes[n]] for n in best]
    return draw_boxes(small, boxes, [names[picture.labels[n]] for n in best], names, [picture.scores[n] for n in best])


def _caption(picture: PictureLabels, kept: PictureLabels, names: Sequence[str], thresholds: np.ndarray) -> str:
    """File name, boxes, and the least certain box."""
    summary = f"{picture.file}: {len(kept.labels)} boxes"
    if not picture.scores:
        return summary
    nearest = min(range(len(picture.scores)), key=lambda n: abs(picture.scores[n] - thresholds[picture.labels[n]]))
    label, score = picture.labels[nearest], picture.scores[nearest]
    side = "kept" if score >= thresholds[label] - 1e-9 else "not kept"
    return f"{summary}; {names[label]} {score:.2f} {side} (threshold {thresholds[label]:.2f})"
