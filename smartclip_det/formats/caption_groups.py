"""Images with all the texts that a caption file gives them: the same picture in several records is one picture."""

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
    """One picture.

    Attributes:
        id: of its first record; with the image's name, where records of other images have that id, too.
        image: its name in the file.
        long: long captions of its records, without repeats.
        short: short captions.
    """

    id: str
    image: str
    long: list[str] = field(default_factory=list)
    short: list[str] = field(default_factory=list)

    def add(self, long: Sequence[str], short: Sequence[str]) -> None:
        """Take the texts of a further record that it does not have yet."""
        self.long += [t for t in dict.fromkeys(long) if t.strip() and t not in self.long]
        self.short += [t for t in dict.fromkeys(short) if t not in self.short]

    def texts(self, which: str) -> tuple[str, ...]:
        """Those of a name of :data:`TEXTS`; a text that is long and short is one."""
        chosen = {"all": [*self.long, *self.short], "long": self.long, "short": self.short}
        return tuple(dict.fromkeys(chosen[which]))


def by_image(records: Sequence[CaptionRecord]) -> list[ImageTexts]:
    """Records as images by name, in the order of their first records."""
    found: dict[str, ImageTexts] = {}
    for r in records:
        name = osp.normpath(r.image)
        if name not in found:
            found[name] = ImageTexts(str(r.id), r.image, [r.long] if r.long.strip() else [], list(r.short))
        else:
            found[name].add([r.long], r.short)
    ids = Counter(i.id for i in found.values())
    for i in found.values():
        if ids[i.id] > 1:
            i.id = f"{i.id} ({i.image})"
    return list(found.values())


def source_of(image: str, folder: Path) -> Path | Member:
    """Where an image of a record is: a file of the folder, or a member of a shard."""
    return member_at(image) if ".tar#" in image else folder / image


def open_source(source: Path | Member) -> Image.Image:
    """The RGB image of :func:`source_of`."""
    return open_rgb(source) if isinstance(source, Path) else decode_rgb(source.read(), source.address)


def same_pictures(images: Sequence[ImageTexts], folder: Path) -> list[ImageTexts]:
    """The images without those that are, byte by byte, an earlier one under another name; its texts join that one's.

    Raises:
        UserError: for images that are not there.
    """
    sources = [source_of(i.image, folder) for i in images]
    absent = [s for s in sources if isinstance(s, Path) and not s.is_file()]
    if absent:
        raise UserError(f"{len(absent)} of {len(images)} images are not there, e.g. {absent[0]}.")
    sizes = [s.stat().st_size if isinstance(s, Path) else s.size for s in sources]
    several = {size for size, count in Counter(sizes).items() if count > 1}
    first: dict[Any, ImageTexts] = {}
    for n, (image, source, size) in enumerate(zip(images, sources, sizes, strict=True)):
        # Pictures of one size in bytes only are read; others differ.
        key: Any = n
        if size in several:
            key = hashlib.sha256(source.read_bytes() if isinstance(source, Path) else source.read()).digest()
        if first.setdefault(key, image) is not image:
            first[key].add(image.long, image.short)
    return list(first.values())


def choose_texts(images: Sequence[ImageTexts], which: str, source: str) -> tuple[list[ImageTexts], dict[str, Any]]:
    """The images that have texts of the kind asked for, and what a stamp says of the choice.

    Args:
        images: of a set.
        which: a name of :data:`TEXTS`.
        source: of the set, for messages.

    Raises:
        UserError: where no image has such a text.
    """
    check_choice("texts", which, TEXTS)
    kept = [i for i in images if i.texts(which)]
    if not kept:
        raise UserError(f"{source} has no {which} captions; it has {'short' if which == 'long' else 'long'} ones.")
    facts = {
        "texts_taken": which,
        "long_texts": sum(len(i.long) for i in kept) if which != "short" else 0,
        "short_texts": sum(len(i.short) for i in kept) if which != "long" else 0,
    }
    if len(kept) < len(images):
        facts[f"images_without_{which}"] = len(images) - len(kept)
    return kept, facts
