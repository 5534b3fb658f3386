"""A folder of photographs to a data set: labelled picture by picture, to be gone on with after a kill at any moment."""

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

#: Detections down to this score are logged, so that thresholds and layouts can change without looking again.
FLOOR = 0.01
LOG, REVIEW, SUMMARY = "answers.jsonl", "review.html", "summary.json"


@dataclass(frozen=True)
class LabelOptions:
    """What is labelled, and how it is written.

    Attributes:
        photos: folder of the pictures, searched in depth.
        names: of the classes.
        out: folder of the data set.
        layout: one of ``LABEL_FORMATS``.
        threshold: lowest score of a box, of all classes.
        thresholds: file of one by class (``smartclip-det calibrate``), in place of ``threshold``.
        batch_size: pictures, or tiles, that go through the tower together.
        tile: side and overlap of tiles, in pixels; None: whole pictures.
        max_detections: boxes of a picture, or tile, at most.
        review: pictures on the review page.
        studio_prefix: Label Studio's address of a picture, before its path.
        overwrite: also write over labels that were changed since they were written.
        progress: show a bar.
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
    """What was written.

    Attributes:
        pictures: that were labelled.
        boxes: by class, most first.
        left_out: files by reason.
        told: of what the search passed over, in words.
        files: that were written, those of labels by their folder.
    """

    pictures: int
    boxes: dict[str, int]
    left_out: dict[str, list[str]]
    told: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def label_folder(options: LabelOptions, predictor: Any) -> LabelResult:
    """Label what is not labelled yet, then write the data set and the review page from the log.

    Pictures are taken in groups of ``batch_size`` by their names, and a group is done whole: after a kill each is
    answered in the company that it would have had, and the files are the same to the byte.

    Args:
        options: what, and how.
        predictor: any with ``set_vocabulary`` and ``detect_images``.

    Raises:
        UserError: for a folder without pictures, options out of range, a log of other answers, labels that would be
            one file, or that somebody changed. Broken pictures are no error: they are left out, by reason.
    """
    lowest = _lowest_scores(options)
    check_count("batch_size", options.batch_size)
    tile = None if options.tile is None else check_tile(options.tile)
    check_choice("format", options.layout, LABEL_FORMATS)
    photos = options.photos
    if not photos.is_dir():
        raise UserError(f"{photos} is no folder of photographs.")
    found, told = find_images([photos], recursive=True)
    files = [p.relative_to(photos).as_posix() for p in found if not _is_within(p, options.out)]
    if not files:
        raise UserError(f"{photos} has no pictures but those in {options.out}.")
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
        return _write(options, [log.done[f] for f in files], lowest, told)


def _is_within(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _lowest_scores(options: LabelOptions) -> dict[str, float]:
    """Threshold of each name."""
    if options.thresholds is not None:
        return read_thresholds(options.thresholds).of(options.names, str(options.thresholds))
    return dict.fromkeys(options.names, check_threshold(options.threshold))


def _answer(log: LabelLog, files: Sequence[str], options: LabelOptions, predictor: Any) -> None:
    """Log the answers of every group that is not whole in the log."""
    from tqdm import tqdm

    sizes = {f: (options.photos / f).stat().st_size for f in files}
    groups = [files[n : n + options.batch_size] for n in range(0, len(files), options.batch_size)]
    open_groups = [g for g in groups if any(f not in log.done or log.done[f].bytes != sizes[f] for f in g)]
    done = len(files) - sum(map(len, open_groups))
    with tqdm(total=len(files), initial=done, desc="labelling", unit="picture", disable=not options.progress) as bar:
        for group in open_groups:
            log.add(_of_group(group, sizes, options, predictor, log.facts["floor"]))
            bar.update(len(group))
            faults = sum(bool(r.fault) for r in log.done.values())
            bar.set_postfix_str(f"{faults} left out" if faults else "", refresh=False)


def _of_group(
    group: Sequence[str], sizes: Mapping[str, int], options: LabelOptions, predictor: Any, floor: float
) -> Iterator[PictureLabels]:
    """A line for each picture of a group, in its order."""
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
    for found in answers:
        name = as_picture(found.known_image()).name
        rows[name] = PictureLabels.of(name, sizes[name], found.size, found)
    return (rows[f] if f in rows else PictureLabels(f, sizes[f], fault=bad[f]) for f in group)


def _reason(message: str, picture: Picture) -> str:
    """A fault without the file's name, so that equal ones count together."""
    path = Path(picture.source)
    for name in (str(path.resolve()), str(path), picture.name):
        message = message.replace(repr(name), "").replace(name, "")
    return " ".join(message.split()).removeprefix("The image cannot be read (").removesuffix(").").strip()


def _write(
    options: LabelOptions, rows: Sequence[PictureLabels], lowest: Mapping[str, float], told: list[str]
) -> LabelResult:
    """The data set, the summary and the review page."""
    names, out = list(options.names), options.out
    thresholds = np.array([lowest[n] for n in names])
    good = [r for r in rows if not r.fault]
    kept = [r.above(thresholds) for r in good]
    left_out: dict[str, list[str]] = {}
    for row in rows:
        if row.fault:
            left_out.setdefault(row.fault, []).append(row.file)
    counts = Counter(names[k] for r in kept for k in r.labels)
    result = LabelResult(len(good), dict(counts.most_common()), left_out, told)
    files = files_of(options.layout, kept, names, options.studio_prefix)
    write_files(out, files, overwrite=options.overwrite)
    if options.layout == "yolo":
        link_pictures(out, options.photos)
    address = quote(os.path.relpath(options.photos.resolve(), out.resolve()))
    page = review_page(good, names, thresholds, options.photos, address, left_out=left_out, count=options.review)
    summary = {
        "pictures": len(good),
        "boxes": result.boxes,
        "thresholds": dict(lowest),
        "left_out": left_out,
        "passed_over": told,
        "format": options.layout,
    }
    write_files(out, {SUMMARY: json.dumps(summary, indent=1) + "\n"}, overwrite=True)
    result.files = [*dict.fromkeys(out / Path(f).parts[0] for f in files), out / SUMMARY, page.write(out / REVIEW)]
    return result


def summary_lines(result: LabelResult, shown: int = 30) -> list[str]:
    """What was done, in words: counts by class, what was left out and why, what was written."""
    lines = [f"{result.pictures:,} pictures, {sum(result.boxes.values()):,} boxes"]
    lines += [f"  {count:7,d}  {name}" for name, count in list(result.boxes.items())[:shown]]
    if len(result.boxes) > shown:
        lines.append(f"  and {len(result.boxes) - shown:,} more classes: {SUMMARY}")
    for reason, files in result.left_out.items():
        lines.append(f"left out, {len(files):,}: {reason} (first: {files[0]})")
    lines += [f"note: {line}" for line in result.told]
    return [*lines, f"written: {', '.join(map(str, result.files))}"]
