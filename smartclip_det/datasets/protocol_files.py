"""Annotation files of open-vocabulary protocols, made from the official COCO and LVIS annotations.

Splits: OV-COCO of OVR-CNN (arXiv 2011.10678), OV-LVIS of ViLD (arXiv 2104.13921). Files are read and written as
streams, so memory does not grow with their size. A file is written atomically, and only if the manifest shows that its
source or rule has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from smartclip_det.core.errors import UserError
from smartclip_det.core.vocabularies import COCO_CLASSES, OV_COCO_65, OV_COCO_BASE
from smartclip_det.formats.annotation_check import AnnotationCheck
from smartclip_det.formats.json_files import Utf8Reader, open_text, read_json
from smartclip_det.utils.files import write_whole
from smartclip_det.utils.notes import note

MANIFEST = "protocol_files.json"
#: Annotations checked at a time.
PIECE = 1_000
#: Numbers of images in the official files, and of categories in LVIS v1 by frequency.
COCO_TRAIN, COCO_VAL = 118_287, 5_000
LVIS_FREQUENCIES = {"f": 405, "c": 461, "r": 337}


@dataclass(frozen=True)
class ProtocolFile:
    """Rule for one file.

    Attributes:
        name: file name.
        box_ids: categories whose boxes are kept.
        listed_ids: categories that the file lists.
        only_annotated: drop images without a kept box.
        keep_image: further condition on image entries.
        expected: number of images before and after, ``(in, out)``, to verify; None: no check.
    """

    name: str
    box_ids: frozenset[int]
    listed_ids: frozenset[int]
    only_annotated: bool = False
    keep_image: Callable[[dict[str, Any]], bool] | None = None
    expected: tuple[int, int] | None = None


def ov_coco_train() -> list[ProtocolFile]:
    """Base boxes only, without images that have none; listing 48 categories or, for joint training, 65."""
    base, both = _ids(OV_COCO_BASE), _ids(OV_COCO_65)
    count = (COCO_TRAIN, 107_761)
    return [
        ProtocolFile("instances_train2017_seen_2.json", base, base, only_annotated=True, expected=count),
        ProtocolFile("instances_train2017_seen_2_65_cat.json", base, both, only_annotated=True, expected=count),
    ]


def ov_coco_val() -> list[ProtocolFile]:
    """Images with a box of the 65 classes, and only these boxes."""
    both = _ids(OV_COCO_65)
    return [ProtocolFile("instances_val2017_all_2.json", both, both, True, expected=(COCO_VAL, 4_836))]


def _ids(names: Sequence[str]) -> frozenset[int]:
    return frozenset(i for i, n in COCO_CLASSES.items() if n in set(names))


def ov_lvis_train(categories: Sequence[dict[str, Any]], where: str) -> list[ProtocolFile]:
    """No boxes of rare classes; all classes stay listed."""
    frequency = {c["id"]: c.get("frequency") for c in categories}
    counts = {f: sum(v == f for v in frequency.values()) for f in LVIS_FREQUENCIES}
    if sum(counts.values()) != len(frequency):
        raise UserError(f"{where}: categories have no frequency (r, c or f); it is not an LVIS annotation file.")
    if len(frequency) == sum(LVIS_FREQUENCIES.values()) and counts != LVIS_FREQUENCIES:
        raise UserError(
            f"{where} has {len(frequency)} classes like LVIS v1, but {counts['f']} frequent, {counts['c']} common "
            f"and {counts['r']} rare ones instead of 405, 461 and 337: it is not the official file."
        )
    common = frozenset(i for i, f in frequency.items() if f != "r")
    return [ProtocolFile("lvis_v1_train_norare.json", common, frozenset(frequency))]


def lvis_minival(categories: Sequence[dict[str, Any]]) -> list[ProtocolFile]:
    """Images of LVIS val that are from COCO val2017."""
    everything = frozenset(c["id"] for c in categories)
    return [ProtocolFile("lvis_v1_minival.json", everything, everything, keep_image=_of_val2017)]


def _of_val2017(image: dict[str, Any]) -> bool:
    if "coco_url" not in image:
        raise UserError(f"Image {image.get('id')} has no coco_url, which is needed to find COCO val2017 images.")
    return str(image["coco_url"]).split("/")[-2] == "val2017"


@dataclass
class AnnotationStream:
    """An annotation file, read entry by entry.

    Attributes:
        path: COCO or LVIS annotations.
        progress: show progress bars.
    """

    path: Path
    progress: bool = True

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise UserError(f"No annotation file at {self.path}. Check the path.")

    def entries(self, part: str) -> Iterator[dict[str, Any]]:
        """Entries of ``images``, ``annotations`` or ``categories``, in order."""
        return self._items(f"{part}.item", f"reading {part}")

    def value(self, part: str) -> Any:
        """A small part of the file as a whole; None if it is missing."""
        return next(self._items(part, f"reading {part}"), None)

    def _items(self, prefix: str, what: str) -> Iterator[Any]:
        import ijson

        bar = tqdm(desc=what, unit=" entries", disable=not self.progress, leave=False)
        with open_text(self.path) as handle, bar:
            try:
                for item in ijson.items(Utf8Reader(handle), prefix, use_float=True):
                    bar.update()
                    yield item
            except ijson.JSONError as error:
                raise UserError(f"{self.path} is not valid JSON ({error}); it may be cut short.") from error

    def check(self) -> None:
        """Reject what no annotation reader accepts; print notes about what readers fix on the fly.

        Raises:
            UserError: naming the entry.
        """
        check = AnnotationCheck(str(self.path))
        check.categories(list(self.entries("categories")))
        for part, look in (("images", check.images), ("annotations", check.annotations)):
            entries = self.entries(part)
            while piece := list(islice(entries, PIECE)):
                look(piece)
        for line in check.finish().lines():
            note(f"{self.path}: {line}.")

    def digest(self) -> str:
        """SHA-256 of the file."""
        digest = hashlib.sha256()
        with self.path.open("rb") as handle:
            for block in iter(lambda: handle.read(1 << 20), b""):
                digest.update(block)
        return digest.hexdigest()


def make_files(source: AnnotationStream, rules: Sequence[ProtocolFile], out: Path) -> list[dict[str, Any]]:
    """Write the files of the rules to ``out``, keeping those that are up to date.

    Returns:
        Manifest entry of each file: name, counts, hashes, and ``made`` (False if it was kept).

    Raises:
        UserError: for unreadable sources, missing categories, or counts that do not match the protocol.
    """
    digest = source.digest()
    manifest = read_json(out / MANIFEST, "manifest") if (out / MANIFEST).is_file() else {}
    done = []
    checked = False
    for rule in rules:
        entry = manifest.get(rule.name)
        if entry and entry["source_sha256"] == digest and _is_intact(out / rule.name, entry):
            done.append({**entry, "made": False})
            continue
        if not checked:
            source.check()
            checked = True
        entry = {"name": rule.name, "source": source.path.name, "source_sha256": digest}
        entry |= write_protocol_file(source, rule, out / rule.name)
        manifest[rule.name] = entry
        write_whole(out / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        done.append({**entry, "made": True})
    return done


def described(entry: dict[str, Any], out: Path) -> str:
    """One-line description of a file from :func:`make_files`."""
    return (
        f"{'written' if entry['made'] else 'kept'}: {out / entry['name']}: {entry['images']:,} of "
        f"{entry['images_in']:,} images, {entry['annotations']:,} of {entry['annotations_in']:,} boxes, "
        f"{entry['categories']} classes, sha256 {entry['sha256'][:16]}"
    )


def _is_intact(path: Path, entry: dict[str, Any]) -> bool:
    return path.is_file() and AnnotationStream(path, progress=False).digest() == entry["sha256"]


def write_protocol_file(source: AnnotationStream, rule: ProtocolFile, path: Path) -> dict[str, Any]:
    """Write one file; return its counts and hash."""
    categories = [c for c in source.entries("categories") if c["id"] in rule.listed_ids]
    missing = rule.listed_ids - {c["id"] for c in categories}
    if missing:
        raise UserError(f"{source.path} lacks {len(missing)} categories of the protocol, e.g. id {min(missing)}.")
    annotated = {a["image_id"] for a in source.entries("annotations") if a["category_id"] in rule.box_ids}
    kept: set[Any] = set()
    counts = {"images_in": 0, "annotations_in": 0, "annotations": 0}

    def images() -> Iterator[dict[str, Any]]:
        for image in source.entries("images"):
            counts["images_in"] += 1
            if rule.only_annotated and image["id"] not in annotated:
                continue
            if rule.keep_image is None or rule.keep_image(image):
                kept.add(image["id"])
                yield image

    def annotations() -> Iterator[dict[str, Any]]:
        for annotation in source.entries("annotations"):
            counts["annotations_in"] += 1
            if annotation["category_id"] in rule.box_ids and annotation["image_id"] in kept:
                counts["annotations"] += 1
                yield annotation

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as handle:
        handle.write("{")
        for key in ("info", "licenses"):
            if (value := source.value(key)) is not None:
                handle.write(f'"{key}": {json.dumps(value)},\n')
        handle.write(f'"categories": {json.dumps(categories)},\n')
        for key, entries in (("images", images()), ("annotations", annotations())):
            handle.write(f'"{key}": [')
            for n, entry in enumerate(entries):
                handle.write((",\n" if n else "\n") + json.dumps(entry))
            handle.write("\n]" + (",\n" if key == "images" else "}\n"))
    if rule.expected and counts["images_in"] == rule.expected[0] and len(kept) != rule.expected[1]:
        part.unlink()
        raise UserError(
            f"{rule.name}: {counts['images_in']:,} images in, {len(kept):,} out, but the protocol has "
            f"{rule.expected[1]:,}: {source.path} is not the official file."
        )
    os.replace(part, path)
    facts = {"images": len(kept), "categories": len(categories), **counts}
    return {**facts, "sha256": AnnotationStream(path, progress=False).digest()}
