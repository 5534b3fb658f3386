"""Images with captions in the layouts of the field, read into one form. Needs neither mmdet nor mmcv."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.formats.detections import read_json
from smartclip_det.formats.shards import index_shards, is_shards

#: ``share-captioner``: a JSON list with ``image`` and ``conversations`` (ShareGPT4V). ``coco``: COCO captions.
#: ``pairs``: a folder of NAME.jpg beside NAME.txt. ``webdataset``: tar shards of KEY.jpg with KEY.txt or KEY.json.
LAYOUTS = ("share-captioner", "coco", "pairs", "webdataset")
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
#: Files above this size are read record by record: a million long captions are some gigabytes as Python objects.
_STREAM_BYTES = 64 << 20


@dataclass
class CaptionRecord:
    """One image and its texts.

    Attributes:
        id: of the image, as the file has it.
        image: path relative to the data root; for shards ``SHARD#OFFSET+BYTES``.
        long: the long caption; empty where the file has short ones only.
        short: short captions; may be empty.
        present: names by vocabulary, for zero-shot tests.
        regions: ``(x1, y1, x2, y2)`` in pixels of the file, and the region's text.
        size: width and height of the file, where the annotations tell.
    """

    id: Any
    image: str
    long: str
    short: list[str] = field(default_factory=list)
    present: dict[str, list[str]] = field(default_factory=dict)
    regions: list[tuple[tuple[float, float, float, float], str]] = field(default_factory=list)
    size: tuple[int, int] | None = None


def read_caption_records(source: str | Path, layout: str = "auto") -> tuple[list[CaptionRecord], dict[str, int]]:
    """All records of a file, folder or pattern of shards.

    Args:
        source: see :data:`LAYOUTS`; shards as a folder of .tar files or a pattern (``shards/*.tar``).
        layout: ``auto`` recognises it by content.

    Returns:
        Records with at least one text that is not blank, and counts: ``records``, ``without_caption`` (left out).

    Raises:
        UserError: nothing there, another layout (naming those that are known), a broken record (telling which).
    """
    found = detect_layout(source) if layout == "auto" else check_choice("layout", layout, LAYOUTS)
    readers: dict[str, Callable[[Path], Iterator[CaptionRecord]]] = {
        "share-captioner": _share_captioner, "coco": _coco, "pairs": _pairs, "webdataset": _webdataset,
    }  # fmt: skip
    kept, empty = [], 0
    for record in readers[found](Path(source)):
        record.short = [s for s in record.short if s.strip()]
        if record.long.strip() or record.short:
            kept.append(record)
        else:
            empty += 1
    if not kept:
        raise UserError(f"{source} has no image with a caption that is not blank ({empty} without).")
    return kept, {"records": len(kept) + empty, "without_caption": empty}


def detect_layout(source: str | Path) -> str:
    """The layout of a source, by content."""
    path = Path(source)
    if is_shards(path):
        return "webdataset"
    if path.is_dir():
        return "pairs"
    if not path.is_file():
        raise UserError(f"No caption file at {path}. Check the path.")
    with path.open(encoding="utf-8") as handle:
        opening = handle.read(64).lstrip()
    if opening[:1] not in ("[", "{"):
        raise UserError(
            f"{path} is no caption file: layouts are {', '.join(LAYOUTS)}; it starts with {opening[:20]!r}."
        )
    return "share-captioner" if opening[0] == "[" else "coco"


def _share_captioner(path: Path) -> Iterator[CaptionRecord]:
    for number, r in enumerate(_list_items(path)):
        try:
            text = r["conversations"][1]["value"]
            if not isinstance(r["image"], str) or not isinstance(text, str):
                raise TypeError("text in image and conversations[1].value")
            short = r.get("short", ())
            yield CaptionRecord(
                r.get("id", number), r["image"], text, [short] if isinstance(short, str) else list(short)
            )
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            keys = ", ".join(r) if isinstance(r, Mapping) else type(r).__name__
            raise UserError(
                f"{path}: record {number} lacks {error}; each needs image and conversations[1].value (it has {keys}). "
                f"Other layouts: {', '.join(LAYOUTS)}."
            ) from error


def _list_items(path: Path) -> Iterator[Any]:
    """The items of a JSON list; one by one where the file is large."""
    if path.is_file() and path.stat().st_size > _STREAM_BYTES:
        import ijson
        from tqdm import tqdm

        with path.open("rb") as handle, tqdm(
            total=path.stat().st_size, desc="reading captions", unit="B", unit_scale=True, leave=False
        ) as bar:  # fmt: skip
            try:
                for item in ijson.items(handle, "item", use_float=True):
                    bar.n = handle.tell()
                    bar.update(0)
                    yield item
            except ijson.JSONError as error:
                raise UserError(f"{path} is not valid JSON ({error}); it may be cut short.") from error
        return
    content = read_json(path, "caption file")
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} must hold a JSON list of records (ShareGPT4V layout).")
    yield from content


def _coco(path: Path) -> Iterator[CaptionRecord]:
    content = read_json(path, "caption file")
    try:
        images = {i["id"]: i for i in content["images"]}
        texts: dict[Any, list[str]] = {}
        for a in content["annotations"]:
            texts.setdefault(a["image_id"], []).append(a["caption"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} lacks {error}: COCO captions need images (id, file_name) and annotations (image_id, caption)."
        ) from error
    foreign = [i for i in texts if i not in images]
    if foreign:
        raise UserError(f"{path}: {len(foreign)} images have captions and no entry, e.g. {foreign[0]!r}.")
    for image_id, info in images.items():
        size = (info["width"], info["height"]) if "width" in info and "height" in info else None
        yield CaptionRecord(image_id, info["file_name"], "", texts.get(image_id, []), size=size)


def _pairs(path: Path) -> Iterator[CaptionRecord]:
    if not path.is_dir():
        raise UserError(f"No folder at {path}; layout pairs is a folder of NAME.jpg beside NAME.txt.")
    images = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS)
    lone = [p for p in images if not p.with_suffix(".txt").is_file()]
    if not images or len(lone) == len(images):
        raise UserError(f"{path} has {len(images)} images and none with a .txt of its name beside it.")
    if lone:
        raise UserError(f"{len(lone)} of {len(images)} images in {path} have no .txt beside them, e.g. {lone[0].name}.")
    for p in images:
        name = str(p.relative_to(path))
        yield CaptionRecord(name, name, p.with_suffix(".txt").read_text(encoding="utf-8").strip())


def _webdataset(path: Path) -> Iterator[CaptionRecord]:
    for key, members in index_shards(path):
        image = next((members[e] for e in IMAGE_ENDINGS if e in members), None)
        if image is None:
            raise UserError(f"{path}: sample {key!r} has no image ({', '.join(members)}).")
        if ".txt" in members:
            yield CaptionRecord(key, image.address, members[".txt"].read().decode("utf-8").strip())
        elif ".json" in members:
            yield _from_json(key, image.address, members[".json"].read(), path)
        else:
            raise UserError(f"{path}: sample {key!r} has no .txt and no .json ({', '.join(members)}).")


def _from_json(key: str, image: str, content: bytes, path: Path) -> CaptionRecord:
    """A shard's JSON: ``caption`` or ``long``, and ``short`` (one text or several)."""
    try:
        facts = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path}: the .json of sample {key!r} is not valid ({error}).") from error
    short = facts.get("short", [])
    text = facts.get("long") or facts.get("caption") or ""
    return CaptionRecord(key, image, str(text), [short] if isinstance(short, str) else list(short))
