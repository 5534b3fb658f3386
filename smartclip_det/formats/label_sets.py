"""Write labelled images as data sets in common layouts; edited labels are never overwritten."""

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

#: URL prefix of Label Studio's local files, relative to LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT.
STUDIO_FILES = "/data/local-files/?d="
#: Hashes of the written files, to detect later edits.
MANIFEST = ".written.json"
YOLO_LIST = "images.txt"
Files = dict[str, str]


def files_of(layout: str, pictures: Sequence[PictureLabels], names: Sequence[str], prefix: str = STUDIO_FILES) -> Files:
    """Generate the files of a data set: path in its folder -> text.

    Args:
        layout: ``coco``: ``annotations.json``; ``yolo``: ``data.yaml``, ``images.txt`` and ``labels/``, for images in
            ``images/``; ``voc``: ``Annotations/``; ``label-studio``: ``tasks.json`` and ``label_config.xml``.
        pictures: images that could be read.
        names: class names.
        prefix: URL prefix of images in Label Studio.

    Raises:
        UserError: for an unknown layout; two images that would share a label file.
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
    """Raise an error for images that differ only in suffix, if label files are named after them.

    Raises:
        UserError: names the first one.
    """
    if layout not in ("yolo", "voc"):
        return
    seen: dict[str, str] = {}
    for file in files:
        stem = _stem(file)
        if stem in seen:
            raise UserError(
                f"{seen[stem]} and {file} would share one {layout} label file. Rename one, or use --format coco."
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
    # `path` is omitted, as it would be absolute: readers then use the folder of the file. Images are listed, since the
    # image folder may have unreadable ones.
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
    """Write a data set; each file is written atomically.

    Args:
        folder: folder of the data set.
        files: path -> text.
        overwrite: overwrite files even if they were edited.

    Raises:
        UserError: for existing files that were not written by this function, or were edited since.
    """
    manifest = folder / MANIFEST
    known: dict[str, list[str]] = read_json(manifest, "list of written files") if manifest.is_file() else {}
    new = {name: _hash(text.encode()) for name, text in files.items()}
    if not overwrite:
        changed = [n for n in files if _changed(folder / n, [new[n], *known.get(n, [])])]
        if changed:
            raise UserError(
                f"{len(changed)} files in {folder} were edited after they were written, or were not written by this "
                f"tool (first: {changed[0]}). Choose another --out, or use --overwrite to discard the edits."
            )
    # If the run dies while writing, old and new versions are both known as ours.
    hashes = {n: list(dict.fromkeys([*known.get(n, []), new[n]])) for n in files}
    write_whole(manifest, json.dumps({**known, **hashes}))
    for name, text in files.items():
        write_whole(folder / name, text)
    write_whole(manifest, json.dumps({**known, **{n: [h] for n, h in new.items()}}))


def _changed(path: Path, expected: Sequence[str]) -> bool:
    return path.exists() and (not path.is_file() or _hash(path.read_bytes()) not in expected)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def link_pictures(folder: Path, photos: Path) -> None:
    """Link ``images`` next to ``labels``, where YOLO trainers look for images.

    Raises:
        UserError: if the path exists and is something else.
    """
    place = folder / "images"
    target = os.path.relpath(photos.resolve(), folder.resolve())
    if place.is_symlink() and os.readlink(place) == target:
        return
    if place.exists() or place.is_symlink():
        raise UserError(f"{place} exists, but YOLO trainers need a link to the images there. Choose another --out.")
    place.symlink_to(target, target_is_directory=True)
