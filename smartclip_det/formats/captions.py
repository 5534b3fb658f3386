"""Readers of image-caption files in common layouts. Needs neither mmdet nor mmcv."""

from __future__ import annotations

import codecs
import json
import math
import os.path as osp
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.formats.caption_counts import CaptionCounts, long_and_short, take_texts
from smartclip_det.formats.conversations import answer_of
from smartclip_det.formats.shards import index_shards, is_shards
from smartclip_det.formats.texts import HOW_TO_CONVERT, decode_text, is_text
from smartclip_det.utils.files import is_debris

#: ``share-captioner``: a JSON list with ``image`` and ``conversations`` (ShareGPT4V). ``coco``: COCO captions.
#: ``pairs``: a folder of NAME.jpg with NAME.txt. ``webdataset``: tar shards of KEY.jpg with KEY.txt or KEY.json.
#: Each line of a .txt is a caption; a .txt with blank lines (paragraphs) is one long caption.
LAYOUTS = ("share-captioner", "coco", "pairs", "webdataset")
IMAGE_ENDINGS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".gif",
    ".jfif",
    ".jpe",
    ".ppm",
    ".pgm",
    ".avif",
)
#: Files above this size are streamed: a million long captions take gigabytes as Python objects.
_STREAM_BYTES = 64 << 20


@dataclass
class CaptionRecord:
    """One image and its texts.

    Attributes:
        id: image id in the file.
        image: path relative to the data root; for shards ``SHARD#OFFSET+BYTES``.
        long: the long caption; empty if the file only has short ones.
        short: short captions; may be empty.
        present: names of present objects by vocabulary, for zero-shot tests.
        regions: ``(x1, y1, x2, y2)`` in pixels of the file, and the region's text.
        size: (width, height) of the file, if the annotations have it.
        objects: objects described in words, from a scene file.
    """

    id: Any
    image: str
    long: str
    short: list[str] = field(default_factory=list)
    present: dict[str, list[str]] = field(default_factory=dict)
    regions: list[tuple[tuple[float, float, float, float], str]] = field(default_factory=list)
    size: tuple[int, int] | None = None
    objects: list[dict[str, str]] = field(default_factory=list)


def read_caption_records(source: str | Path, layout: str = "auto") -> tuple[list[CaptionRecord], CaptionCounts]:
    """Read all records of a file, folder or pattern of shards.

    Args:
        source: see :data:`LAYOUTS`; shards as a folder of .tar files or a pattern (``shards/*.tar``).
        layout: ``auto`` detects it from the content.

    Returns:
        Records with at least one non-blank text, and counts: ``records``, ``without_caption`` (skipped), and each
        reason of ``caption_counts.REASONS`` that occurred.

    Raises:
        UserError: for a missing source, an unknown layout (lists the known ones), or an invalid record (names it).
    """
    detected = detect_layout(source) if layout == "auto" else check_choice("layout", layout, LAYOUTS)
    readers: dict[str, Callable[[Path, CaptionCounts], Iterator[CaptionRecord]]] = {
        "share-captioner": _share_captioner,
        "coco": _coco,
        "pairs": _pairs,
        "webdataset": _webdataset,
    }
    counts, records = CaptionCounts(), []
    for record in readers[detected](Path(source), counts):
        counts["records"] += 1
        texts = [s for s in record.short if s.strip()]
        if not texts and not record.long.strip():
            counts.add("without_caption", f"{record.image} (id {record.id!r})")
            continue
        for _ in range(len(record.short) - len(texts)):
            counts.add("blank_texts", f"{record.image} (id {record.id!r})")
        record.short = texts
        records.append(record)
    if not records:
        raise UserError(
            f"{source} has no image with a non-blank caption ({counts['without_caption']} without): "
            f"{counts.reasons('without_caption')}."
        )
    _count_repeats(records, counts)
    return records, counts


def _count_repeats(records: list[CaptionRecord], counts: CaptionCounts) -> None:
    images: set[str] = set()
    wholes: set[int] = set()
    image_of_id: dict[Any, str] = {}
    for r in records:
        image, where = osp.normpath(r.image), f"{r.image} (id {r.id!r})"
        whole = hash((image, r.long, tuple(r.short)))
        if image in images:
            counts.add("repeated_records" if whole in wholes else "repeated_images", where)
        if image_of_id.setdefault(str(r.id), image) != image:
            counts.add("repeated_ids", where)
        images.add(image)
        wholes.add(whole)


def detect_layout(source: str | Path) -> str:
    """Detect the layout of a source from its content."""
    path = Path(source)
    if is_shards(path):
        return "webdataset"
    if path.is_dir():
        return "pairs"
    if not path.is_file():
        raise UserError(f"No caption file at {path}. Check the path.")
    with path.open("rb") as handle:
        head = handle.read(256)
    opening = head.decode(json.detect_encoding(head), "ignore").lstrip()
    if opening[:1] not in ("[", "{"):
        raise UserError(
            f"{path} is not a caption file: layouts are {', '.join(LAYOUTS)}; it starts with {opening[:20]!r}."
        )
    return "share-captioner" if opening[0] == "[" else "coco"


def _share_captioner(path: Path, counts: CaptionCounts) -> Iterator[CaptionRecord]:
    for number, r in enumerate(_list_items(path)):
        lacks = next((k for k in ("conversations", "image") if not isinstance(r, Mapping) or k not in r), None)
        if lacks == "conversations" and isinstance(r, Mapping) and "messages" in r:
            lacks = None if "image" in r else "image"
        if lacks == "conversations":
            keys = ", ".join(map(str, r)) if isinstance(r, Mapping) else type(r).__name__
            raise UserError(
                f"{path}: record {number} lacks {lacks!r}; each needs image and conversations (it has {keys}). "
                f"Other layouts: {', '.join(LAYOUTS)}."
            )
        name = r.get("id", number)
        where = f"record {number} (id {name!r})"
        image = r.get("image")
        if isinstance(image, list) and len(image) == 1:
            image = image[0]
        if isinstance(image, list) or not image:
            # Mixtures for chat models also have records without an image, or with several.
            counts["records"] += 1
            counts.add("several_images" if image else "no_image", where)
            continue
        long, several = long_and_short(answer_of(r.get("conversations", r.get("messages")), counts, where))
        short = take_texts(r["short"], counts, where) if r.get("short") is not None else []
        yield CaptionRecord(name, _image_name(image, path, where), long, [*several, *short])


def _image_name(name: Any, path: Path, where: str) -> str:
    if not isinstance(name, str) or not name.strip() or not is_text(name):
        raise UserError(f"{path}: {where} has no valid image name: {name!r}.")
    return name


def _list_items(path: Path) -> Iterator[Any]:
    """Yield the items of a JSON list; large files are streamed."""
    if path.is_file() and path.stat().st_size > _STREAM_BYTES:
        import ijson
        from tqdm import tqdm

        with (
            path.open("rb") as handle,
            tqdm(total=path.stat().st_size, desc="reading captions", unit="B", unit_scale=True, leave=False) as bar,
        ):
            if handle.read(3) != codecs.BOM_UTF8:
                handle.seek(0)
            try:
                for item in ijson.items(handle, "item", use_float=True):
                    bar.n = handle.tell()
                    bar.update(0)
                    yield item
            except (ijson.JSONError, UnicodeDecodeError) as error:
                raise UserError(
                    f"{path} is not valid JSON in UTF-8 ({error}); it may be truncated, contain NaN, or use another "
                    f"encoding ({HOW_TO_CONVERT})."
                ) from error
        return
    content = _read_json(path)
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} must hold a JSON list of records (ShareGPT4V layout).")
    yield from content


def _read_json(path: Path) -> Any:
    """Parse a caption file; texts that are not UTF-8 are reported record by record."""
    if not path.is_file():
        raise UserError(f"No caption file at {path}. Check the path.")
    try:
        return _parse_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); it may be truncated.") from error


def _parse_json(content: bytes) -> Any:
    """Parse JSON in any Unicode encoding; bytes that are not UTF-8 become lone surrogates."""
    return json.loads(content.decode(json.detect_encoding(content), "surrogateescape"))


def _coco(path: Path, counts: CaptionCounts) -> Iterator[CaptionRecord]:
    images, annotations = _coco_parts(_read_json(path), path)
    texts: dict[Any, list[str]] = {}
    for n, a in enumerate(annotations):
        where = f"annotation {n} (id {a.get('id')!r}, image_id {a['image_id']!r})"
        texts.setdefault(a["image_id"], []).extend(take_texts(a["caption"], counts, where))
    unlisted = [i for i in texts if i not in images]
    if unlisted:
        raise UserError(f"{path}: {len(unlisted)} images have captions and no entry, e.g. {unlisted[0]!r}.")
    for image_id, info in images.items():
        yield CaptionRecord(image_id, info["file_name"], "", texts.get(image_id, []), size=_size(info))


def _coco_parts(content: Any, path: Path) -> tuple[dict[Any, dict[str, Any]], list[dict[str, Any]]]:
    """Return images by id, and annotations; checks the required keys."""
    needed = {"images": ("id", "file_name"), "annotations": ("image_id", "caption")}
    for part, keys in needed.items():
        entries = content.get(part) if isinstance(content, dict) else None
        for n, entry in enumerate(entries if isinstance(entries, list) else [None]):
            lacks = (
                part if entry is None else next((k for k in keys if not isinstance(entry, dict) or k not in entry), "")
            )
            if lacks:
                where = "" if entry is None else f" in {part}[{n}]"
                raise UserError(
                    f"{path} lacks {lacks!r}{where}: COCO captions need images (id, file_name) and annotations "
                    "(image_id, caption)."
                )
            if not isinstance(entry[keys[0]], str | int | float):
                raise UserError(
                    f"{path}: {part}[{n}] has {entry[keys[0]]!r} for {keys[0]}; expected a number or string."
                )
    images: dict[Any, dict[str, Any]] = {}
    for n, i in enumerate(content["images"]):
        _image_name(i["file_name"], path, f"images[{n}] (id {i['id']!r})")
        if images.setdefault(i["id"], i)["file_name"] != i["file_name"]:
            raise UserError(
                f"{path}: images {images[i['id']]['file_name']} and {i['file_name']} share the id {i['id']!r}, so "
                "their captions cannot be separated."
            )
    return images, content["annotations"]


def _size(info: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = info.get("width"), info.get("height")
    known = all(isinstance(n, int | float) and math.isfinite(n) and n >= 1 for n in (width, height))
    return (width, height) if known else None  # type: ignore[return-value]


def _pairs(path: Path, counts: CaptionCounts) -> Iterator[CaptionRecord]:
    if not path.is_dir():
        raise UserError(f"No folder at {path}; layout pairs is a folder of NAME.jpg with NAME.txt.")
    images, texts, others = _files_of_pairs(path, counts)
    lone = [p for p in images if p.with_suffix("") not in texts]
    if not images or len(lone) == len(images):
        raise UserError(
            f"{path} has {len(images)} images, none of which has a .txt of the same name.\n{counts.table()}".rstrip()
        )
    if lone:
        raise UserError(
            f"{len(lone)} of {len(images)} images in {path} have no .txt of the same name, e.g. {lone[0].name}."
        )
    stems: set[Path] = set()
    for p in images:
        name, stem = str(p.relative_to(path)), p.with_suffix("")
        if stem in stems:
            counts.add("shared_texts", name)
        stems.add(stem)
        long, several = long_and_short(_of_text(texts[stem].read_bytes(), counts, str(texts[stem].relative_to(path))))
        yield CaptionRecord(name, name, long, several)
    for stem, text in texts.items():
        if stem not in stems:
            name = f"{stem.name}{others[stem]}" if stem in others else str(text.relative_to(path))
            counts.add("other_endings" if stem in others else "texts_without_image", name)


def _files_of_pairs(path: Path, counts: CaptionCounts) -> tuple[list[Path], dict[Path, Path], dict[Path, str]]:
    """Return images in order; texts, and suffixes of other files, by path without suffix."""
    images, texts, others = [], {}, {}
    for p in sorted(path.rglob("*")):
        ending = p.suffix.lower()
        if is_debris(p.relative_to(path)):
            counts.add("hidden_files", str(p.relative_to(path)))
        elif ending in IMAGE_ENDINGS:
            images.append(p)
        elif ending == ".txt":
            texts[p.with_suffix("")] = p
        elif ending and ending != ".json":
            others[p.with_suffix("")] = p.suffix
    return images, texts, others


def _of_text(content: bytes, counts: CaptionCounts, where: str) -> list[str]:
    """Return the captions of a .txt: one per line, or a single one if blank lines separate paragraphs."""
    texts = take_texts(decode_text(content).strip(), counts, where)
    lines = [line.strip() for text in texts for line in text.split("\n")]
    if len(lines) < 2 or not all(lines):
        return texts
    counts.add("lines_as_captions", where)
    return lines


def _webdataset(path: Path, counts: CaptionCounts) -> Iterator[CaptionRecord]:
    for key, members in index_shards(path, counts):
        image = next((members[e] for e in IMAGE_ENDINGS if e in members), None)
        if image is None:
            raise UserError(f"{path}: sample {key!r} has no image ({', '.join(members)}).")
        where = f"{image.shard.name}: sample {key!r}"
        if ".txt" in members:
            long, short = long_and_short(_of_text(members[".txt"].read(), counts, where))
        elif ".json" in members:
            long, short = _of_json(members[".json"].read(), counts, where, path)
        else:
            raise UserError(f"{path}: sample {key!r} has no .txt and no .json ({', '.join(members)}).")
        yield CaptionRecord(key, image.address, long, short)


def _of_json(content: bytes, counts: CaptionCounts, where: str, path: Path) -> tuple[str, list[str]]:
    """Parse a shard's JSON: ``long`` or ``caption``, and ``short``, each one or several texts.

    Or the texts themselves.
    """
    try:
        facts = _parse_json(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: the .json of {where} is not valid ({error}).") from error
    if not isinstance(facts, Mapping):
        return long_and_short(take_texts(facts, counts, where))
    known = [k for k in ("long", "caption", "short") if k in facts]
    if not known:
        counts.add("no_caption_key", f"{where} has {', '.join(facts) or 'no key'}")
        return "", []
    main = "long" if facts.get("long") else "caption"
    long, several = long_and_short(take_texts(facts[main], counts, where) if main in facts else [])
    return long, [*several, *(take_texts(facts["short"], counts, where) if facts.get("short") is not None else [])]
