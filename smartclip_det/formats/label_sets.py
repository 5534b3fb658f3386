"""Whole data sets of labelled pictures, in the layouts that others read; corrected labels are never written over."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import numpy as np

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.words import LABEL_FORMATS
from smartclip_det.formats import written_labels as written
from smartclip_det.formats.converted import categories_of
from smartclip_det.formats.json_files import read_json
from smartclip_det.formats.label_log import PictureLabels
from smartclip_det.utils.files import write_whole

#: Where Label Studio serves files of the folder that LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT names.
STUDIO_FILES = "/data/local-files/?d="
#: What was written, so that what somebody corrected since is known.
MANIFEST = ".written.json"
YOLO_LIST = "images.txt"
Files = dict[str, str]


def files_of(layout: str, pictures: Sequence[PictureLabels], names: Sequence[str], prefix: str = STUDIO_FILES) -> Files:
    """Text of each file of a data set, by its path in the data set's folder.

    Args:
        layout: ``coco``: ``annotations.json``; ``yolo``: ``data.yaml``, ``images.txt`` and ``labels/``, beside which
            the pictures lie as ``images/``; ``voc``: ``Annotations/``; ``label-studio``: ``tasks.json`` and
            ``label_config.xml``.
        pictures: those that could be read.
        names: of the labels.
        prefix: Label Studio's address of a picture, before its path.

    Raises:
        UserError: for an unknown layout; two pictures whose labels would be one file.
    """
    writers: dict[str, Callable[[], Files]] = {
        "coco": lambda: {"annotations.json": _coco(pictures, names)},
        "yolo": lambda: _yolo(pictures, names),
        "voc": lambda: _voc(pictures, names),
        "label-studio": lambda: {
            "tasks.json": _studio(pictures, names, prefix),
            "label_config.xml": written.studio_setup(names),
        },
    }
    return writers[check_choice("format", layout, LABEL_FORMATS)]()


def check_stems(layout: str, files: Sequence[str]) -> None:
    """Refuse pictures that differ by their endings alone, where labels are named after them.

    Raises:
        UserError: naming the first.
    """
    if layout not in ("yolo", "voc"):
        return
    seen: dict[str, str] = {}
    for file in files:
        stem = _stem(file)
        if stem in seen:
            raise UserError(
                f"{seen[stem]} and {file} would have their {layout} labels in one file. Rename one, or use --format "
                "coco."
            )
        seen[stem] = file


def _stem(file: str) -> str:
    return PurePosixPath(file).with_suffix("").as_posix()


def _arrays(picture: PictureLabels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.array(picture.boxes, float).reshape(-1, 4), np.array(picture.scores, float), np.array(picture.labels, int)


def _coco(pictures: Sequence[PictureLabels], names: Sequence[str]) -> str:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, picture in enumerate(pictures, 1):
        width, height = picture.size
        images.append({"id": number, "file_name": picture.file, "width": width, "height": height})
        for row in written.coco_annotations(*_arrays(picture), picture.size):
            annotations.append({"id": len(annotations) + 1, "image_id": number, **row})
    content = {"images": images, "annotations": annotations, "categories": categories_of(names)}
    return json.dumps(content) + "\n"


def _yolo(pictures: Sequence[PictureLabels], names: Sequence[str]) -> Files:
    import yaml

    files = {}
    for picture in pictures:
        boxes, _, labels = _arrays(picture)
        files[f"labels/{_stem(picture.file)}.txt"] = written.yolo_text(boxes, labels, picture.size)
    # Without `path`, which would be of this machine, readers take the folder of the file; a list, since the folder of
    # pictures may hold broken ones.
    facts = {"train": YOLO_LIST, "val": YOLO_LIST, "names": dict(enumerate(names))}
    listed = "".join(f"./images/{p.file}\n" for p in pictures)
    return {"data.yaml": yaml.safe_dump(facts, sort_keys=False, allow_unicode=True), YOLO_LIST: listed, **files}


def _voc(pictures: Sequence[PictureLabels], names: Sequence[str]) -> Files:
    files = {}
    for picture in pictures:
        boxes, _, labels = _arrays(picture)
        text = written.voc_text(boxes, labels, names, picture.size, picture.file)
        files[f"Annotations/{_stem(picture.file)}.xml"] = text
    return files


def _studio(pictures: Sequence[PictureLabels], names: Sequence[str], prefix: str) -> str:
    tasks = [written.studio_task(*_arrays(p), names, p.size, f"{prefix}{quote(p.file)}") for p in pictures]
    return json.dumps(tasks, ensure_ascii=False, indent=1) + "\n"


def write_files(folder: Path, files: Mapping[str, str], *, overwrite: bool = False) -> None:
    """Write a data set, each file whole or not at all.

    Args:
        folder: of the data set.
        files: text of each.
        overwrite: also over files that were changed since they were written here.

    Raises:
        UserError: for files in the place that were not written here, or were changed since.
    """
    manifest = folder / MANIFEST
    known: dict[str, list[str]] = read_json(manifest, "list of written files") if manifest.is_file() else {}
    new = {name: _hash(text.encode()) for name, text in files.items()}
    if not overwrite:
        changed = [n for n in files if _changed(folder / n, [new[n], *known.get(n, [])])]
        if changed:
            raise UserError(
                f"{len(changed)} files in {folder} were changed since they were written, or are somebody's own (first: "
                f"{changed[0]}). Give another --out, or --overwrite to lose the changes."
            )
    # A run that dies while it writes has left files of before and of now.
    both = {n: list(dict.fromkeys([*known.get(n, []), new[n]])) for n in files}
    write_whole(manifest, json.dumps({**known, **both}))
    for name, text in files.items():
        write_whole(folder / name, text)
    write_whole(manifest, json.dumps({**known, **{n: [h] for n, h in new.items()}}))


def _changed(path: Path, expected: Sequence[str]) -> bool:
    return path.exists() and (not path.is_file() or _hash(path.read_bytes()) not in expected)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def link_pictures(folder: Path, photos: Path) -> None:
    """``images`` beside ``labels``, as YOLO's trainers look for pictures: a link to the photographs.

    Raises:
        UserError: where something else is in the place.
    """
    place = folder / "images"
    target = os.path.relpath(photos.resolve(), folder.resolve())
    if place.is_symlink() and os.readlink(place) == target:
        return
    if place.exists() or place.is_symlink():
        raise UserError(f"{place} is in the way: YOLO's trainers look for the pictures there. Give another --out.")
    place.symlink_to(target, target_is_directory=True)
