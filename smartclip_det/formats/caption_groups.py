"""Group the records of a caption file by image: an image in several records gets all their texts."""

from __future__ import annotations

import hashlib
import os.path as osp
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.words import CAPTION_TEXTS as TEXTS
from smartclip_det.formats.captions import CaptionRecord
from smartclip_det.formats.shards import Member, member_at
from smartclip_det.utils.images import decode_rgb, open_rgb


@dataclass
class ImageTexts:
    """One image with its texts.

    Attributes:
        id: id of its first record; the image name is appended if other images have the same id.
        image: image name in the file.
        long: distinct long captions of its records.
        short: distinct short captions.
    """

    id: str
    image: str
    long: list[str] = field(default_factory=list)
    short: list[str] = field(default_factory=list)

    def add(self, long: Sequence[str], short: Sequence[str]) -> None:
        """Add the new texts of another record."""
        self.long += [t for t in dict.fromkeys(long) if t.strip() and t not in self.long]
        self.short += [t for t in dict.fromkeys(short) if t not in self.short]

    def texts(self, which: str) -> tuple[str, ...]:
        """Return the texts of a kind in :data:`TEXTS`, without repeats."""
        chosen = {"all": [*self.long, *self.short], "long": self.long, "short": self.short}
        return tuple(dict.fromkeys(chosen[which]))


def by_image(records: Sequence[CaptionRecord]) -> list[ImageTexts]:
    """Group records by image name, in the order of first occurrence."""
    images: dict[str, ImageTexts] = {}
    for r in records:
        name = osp.normpath(r.image)
        if name not in images:
            images[name] = ImageTexts(str(r.id), r.image, [r.long] if r.long.strip() else [], list(r.short))
        else:
            images[name].add([r.long], r.short)
    ids = Counter(i.id for i in images.values())
    for i in images.values():
        if ids[i.id] > 1:
            i.id = f"{i.id} ({i.image})"
    return list(images.values())


def source_of(image: str, folder: Path) -> Path | Member:
    """Locate an image of a record: a file in the folder, or a member of a shard."""
    return member_at(image) if ".tar#" in image else folder / image


def open_source(source: Path | Member) -> Image.Image:
    """Open an image located by :func:`source_of`, as RGB."""
    return open_rgb(source) if isinstance(source, Path) else decode_rgb(source.read(), source.address)


def same_pictures(images: Sequence[ImageTexts], folder: Path) -> list[ImageTexts]:
    """Merge images that are byte-identical to an earlier one under another name; texts are merged too.

    Raises:
        UserError: for missing images.
    """
    sources = [source_of(i.image, folder) for i in images]
    absent = [s for s in sources if isinstance(s, Path) and not s.is_file()]
    if absent:
        raise UserError(f"{len(absent)} of {len(images)} images do not exist, e.g. {absent[0]}.")
    sizes = [s.stat().st_size if isinstance(s, Path) else s.size for s in sources]
    several = {size for size, count in Counter(sizes).items() if count > 1}
    first: dict[Any, ImageTexts] = {}
    for n, (image, source, size) in enumerate(zip(images, sources, sizes, strict=True)):
        # Files of different size differ, so only files of equal size are read and hashed.
        key: Any = n
        if size in several:
            key = hashlib.sha256(source.read_bytes() if isinstance(source, Path) else source.read()).digest()
        if first.setdefault(key, image) is not image:
            first[key].add(image.long, image.short)
    return list(first.values())


def choose_texts(images: Sequence[ImageTexts], which: str, source: str) -> tuple[list[ImageTexts], dict[str, Any]]:
    """Select images with texts of the requested kind; also returns the facts for the stamp.

    Args:
        images: images of a set.
        which: kind of texts, in :data:`TEXTS`.
        source: name of the set, for messages.

    Raises:
        UserError: if no image has such a text.
    """
    check_choice("texts", which, TEXTS)
    selected = [i for i in images if i.texts(which)]
    if not selected:
        raise UserError(f"{source} has no {which} captions; it has {'short' if which == 'long' else 'long'} ones.")
    facts = {
        "texts_taken": which,
        "long_texts": sum(len(i.long) for i in selected) if which != "short" else 0,
        "short_texts": sum(len(i.short) for i in selected) if which != "long" else 0,
    }
    if len(selected) < len(images):
        facts[f"images_without_{which}"] = len(images) - len(selected)
    return selected, facts
