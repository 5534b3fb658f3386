"""Label a folder of images into a data set, image by image; resumable after an interruption at any point."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from smartclip_det.apis.inputs import Picture, as_picture, check_count, check_threshold, find_images
from smartclip_det.apis.tiles import answer_images, check_tile
from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.words import LABEL_FORMATS
from smartclip_det.formats.label_log import LabelLog, PictureLabels
from smartclip_det.formats.label_sets import STUDIO_FILES, check_stems, files_of, link_pictures, write_files
from smartclip_det.formats.thresholds import read_thresholds
from smartclip_det.visualization.review import review_page

#: Detections are logged down to this score, so that thresholds and output formats can change without new inference.
FLOOR = 0.01
LOG, REVIEW, SUMMARY = "answers.jsonl", "review.html", "summary.json"


@dataclass(frozen=True)
class LabelOptions:
    """Options of labelling.

    Attributes:
        photos: image folder, searched recursively.
        names: class names.
        out: output folder of the data set.
        layout: one of ``LABEL_FORMATS``.
        threshold: minimum score of a box, for all classes.
        thresholds: per-class thresholds file (``smartclip-det calibrate``), replaces ``threshold``.
        batch_size: images (or tiles) per batch.
        tile: (side, overlap) of tiles in pixels; None: whole images.
        max_detections: maximum detections per image or tile.
        review: images on the review page.
        studio_prefix: URL prefix of images in Label Studio.
        overwrite: overwrite labels even if they were edited after they were written.
        progress: show a progress bar.
    """

    photos: Path
    names: Sequence[str]
    out: Path = Path("work_dirs/labels")
    layout: str = LABEL_FORMATS[0]
    threshold: float = 0.5
    thresholds: Path | None = None
    batch_size: int = 8
    tile: tuple[int, int] | None = None
    max_detections: int = 100
    review: int = 200
    studio_prefix: str = STUDIO_FILES
    overwrite: bool = False
    progress: bool = True


@dataclass
class LabelResult:
    """Result of labelling.

    Attributes:
        pictures: number of labelled images.
        boxes: boxes per class, most frequent first.
        skipped: unreadable files by reason.
        notes: notes on files that the search skipped.
        files: written files; label files are listed by their folder.
    """

    pictures: int
    boxes: dict[str, int]
    skipped: dict[str, list[str]]
    notes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def label_folder(options: LabelOptions, predictor: Any) -> LabelResult:
    """Label the images that are not labelled yet, then write the data set and the review page from the log.

    Images are processed in name-sorted groups of ``batch_size``, and a group is either done or repeated. After an
    interruption every image is thus processed in the same batch as without it, and the files are byte-identical.

    Args:
        options: labelling options.
        predictor: any object with ``set_vocabulary`` and ``detect_images``.

    Raises:
        UserError: for a folder without images, options out of range, a log of a different run, labels that would share
            a file, or labels that were edited. Unreadable images are no error: they are skipped and reported.
    """
    lowest = _lowest_scores(options)
    check_count("batch_size", options.batch_size)
    tile = None if options.tile is None else check_tile(options.tile)
    check_choice("format", options.layout, LABEL_FORMATS)
    photos = options.photos
    if not photos.is_dir():
        raise UserError(f"{photos} is not a folder. Give a folder of images.")
    images, notes = find_images([photos], recursive=True)
    files = [p.relative_to(photos).as_posix() for p in images if not _is_within(p, options.out)]
    if not files:
        raise UserError(f"{photos} has no images outside {options.out}.")
    check_stems(options.layout, files)
    predictor.set_vocabulary(list(options.names))
    facts = {
        "names": list(options.names),
        "predictor": getattr(predictor, "protocol", {}),
        "tile": tile,
        "floor": min(FLOOR, *lowest.values()),
        "max_detections": options.max_detections,
    }
    with LabelLog(options.out / LOG, facts) as log:
        _answer(log, files, options, predictor)
        log.keep(files)
        return _write(options, [log.done[f] for f in files], lowest, notes)


def _is_within(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _lowest_scores(options: LabelOptions) -> dict[str, float]:
    """Return the score threshold of each name."""
    if options.thresholds is not None:
        return read_thresholds(options.thresholds).of(options.names, str(options.thresholds))
    return dict.fromkeys(options.names, check_threshold(options.threshold))


def _answer(log: LabelLog, files: Sequence[str], options: LabelOptions, predictor: Any) -> None:
    """Process and log every group that is not complete in the log."""
    from tqdm import tqdm

    sizes = {f: (options.photos / f).stat().st_size for f in files}
    groups = [files[n : n + options.batch_size] for n in range(0, len(files), options.batch_size)]
    open_groups = [g for g in groups if any(f not in log.done or log.done[f].bytes != sizes[f] for f in g)]
    done = len(files) - sum(map(len, open_groups))
    with tqdm(total=len(files), initial=done, desc="labelling", unit="image", disable=not options.progress) as bar:
        for group in open_groups:
            log.add(_of_group(group, sizes, options, predictor, log.facts["floor"]))
            bar.update(len(group))
            skipped = sum(bool(r.fault) for r in log.done.values())
            bar.set_postfix_str(f"{skipped} skipped" if skipped else "", refresh=False)


def _of_group(
    group: Sequence[str], sizes: Mapping[str, int], options: LabelOptions, predictor: Any, floor: float
) -> Iterator[PictureLabels]:
    """Return the log entry of each image of a group, in order."""
    bad: dict[str, str] = {}

    def note_fault(picture: Picture, error: UserError) -> None:
        bad[picture.name] = _reason(str(error), picture)

    pictures = [Picture(options.photos / f, f) for f in group]
    answers = answer_images(
        predictor,
        pictures,
        batch_size=options.batch_size,
        tile=options.tile,
        on_bad=note_fault,
        threshold=floor,
        max_detections=options.max_detections,
    )
    rows = {}
    for detections in answers:
        name = as_picture(detections.known_image()).name
        rows[name] = PictureLabels.of(name, sizes[name], detections.size, detections)
    return (rows[f] if f in rows else PictureLabels(f, sizes[f], fault=bad[f]) for f in group)


def _reason(message: str, picture: Picture) -> str:
    """Strip the file's name from an error message, so that equal reasons are counted together."""
    path = Path(picture.source)
    for name in (str(path.resolve()), str(path), picture.name):
        message = message.replace(repr(name), "").replace(name, "")
    return " ".join(message.split()).removeprefix("The image cannot be read (").removesuffix(").").strip()


def _write(
    options: LabelOptions, rows: Sequence[PictureLabels], lowest: Mapping[str, float], notes: list[str]
) -> LabelResult:
    """Write the data set, the summary and the review page."""
    names, out = list(options.names), options.out
    thresholds = np.array([lowest[n] for n in names])
    good = [r for r in rows if not r.fault]
    labelled = [r.above(thresholds) for r in good]
    skipped: dict[str, list[str]] = {}
    for row in rows:
        if row.fault:
            skipped.setdefault(row.fault, []).append(row.file)
    counts = Counter(names[k] for r in labelled for k in r.labels)
    result = LabelResult(len(good), dict(counts.most_common()), skipped, notes)
    files = files_of(options.layout, labelled, names, options.studio_prefix)
    write_files(out, files, overwrite=options.overwrite)
    if options.layout == "yolo":
        link_pictures(out, options.photos)
    address = quote(os.path.relpath(options.photos.resolve(), out.resolve()))
    page = review_page(good, names, thresholds, options.photos, address, left_out=skipped, count=options.review)
    summary = {
        "pictures": len(good),
        "boxes": result.boxes,
        "thresholds": dict(lowest),
        "left_out": skipped,
        "passed_over": notes,
        "format": options.layout,
    }
    write_files(out, {SUMMARY: json.dumps(summary, indent=1) + "\n"}, overwrite=True)
    result.files = [*dict.fromkeys(out / Path(f).parts[0] for f in files), out / SUMMARY, page.write(out / REVIEW)]
    return result


def summary_lines(result: LabelResult, shown: int = 30) -> list[str]:
    """Summarise the result: counts per class, skipped files with reasons, written files."""
    lines = [f"{result.pictures:,} images, {sum(result.boxes.values()):,} boxes"]
    lines += [f"  {count:7,d}  {name}" for name, count in list(result.boxes.items())[:shown]]
    if len(result.boxes) > shown:
        lines.append(f"  and {len(result.boxes) - shown:,} more classes, see {SUMMARY}")
    for reason, files in result.skipped.items():
        lines.append(f"skipped {len(files):,}: {reason} (first: {files[0]})")
    lines += [f"note: {line}" for line in result.notes]
    return [*lines, f"written: {', '.join(map(str, result.files))}"]
