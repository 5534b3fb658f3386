"""Words in pictures: a font that has their letters, one line each, and no two phrases that look the same."""

from __future__ import annotations

import logging
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import ImageFont

logger = logging.getLogger(__name__)
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
_MORE = "…"


def font(size: int, text: str = "") -> Font:
    """A font with the letters of a text: Pillow's own for Latin, else one that this machine has."""
    path = _file_for(frozenset(text))
    return ImageFont.load_default(size=size) if not path else ImageFont.truetype(path, size)


def shown_labels(texts: Sequence[str], length: int | None = None) -> dict[str, str]:
    """What is written for each text: one line, cut to ``length`` letters, and numbered where it would not be read.

    A text becomes its number with a short hash (``#2 a3f0``) where no font on this machine has its letters, which is
    told; and gets the number in front where it would look like another of the texts.
    """
    number = {t: n for n, t in enumerate(dict.fromkeys(texts), 1)}
    lines = {t: _cut(" ".join(t.split()), length) for t in number}
    alike = Counter(lines.values())
    unreadable = {t: n for t, n in number.items() if _file_for(frozenset(lines[t])) is None}
    if unreadable:
        legend = ", ".join(f"#{n} is {t!r}" for t, n in unreadable.items())
        logger.warning("No font here has the letters of %d phrases, drawn as numbers: %s.", len(unreadable), legend)
    out: dict[str, str] = {}
    for t, n in number.items():
        if t in unreadable:
            # Told apart from the phrases of other pictures, too.
            out[t] = f"#{n} {zlib.crc32(t.encode()) & 0xFFFF:04x}"
        else:
            out[t] = lines[t] if alike[lines[t]] == 1 else _cut(f"#{n} {lines[t]}", length)
    return out


def fitting(text: str, font: Font, width: float) -> str:
    """A text cut so that it is at most ``width`` pixels wide; at least its first letter."""
    if font.getlength(text) <= width:
        return text
    kept = len(text) - 1
    while kept > 1 and font.getlength(text[:kept] + _MORE) > width:
        kept -= 1
    return text[:kept] + _MORE


def _cut(text: str, length: int | None) -> str:
    return text if length is None or len(text) <= length else text[: length - 1] + _MORE


@cache
def _file_for(letters: frozenset[str]) -> str | None:
    """A font file with all the letters; empty for Pillow's own font, None where there is none."""
    needed = {ord(c) for c in letters if not c.isspace()}
    # Pillow's font has Latin-1 and a few marks.
    if all(code < 256 for code in needed - {ord(_MORE)}):
        return ""
    return next((path for path in _files() if needed <= _letters_of(path)), None)


@cache
def _files() -> list[str]:
    """Outline fonts of this machine, Matplotlib's own first; each file once, in a fixed order.

    Last Resort has a sign for every script and none for a letter.
    """
    from matplotlib import font_manager, get_data_path

    shipped = str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
    return [
        shipped,
        *sorted({f.fname for f in font_manager.fontManager.ttflist if "LastResort" not in f.fname} - {shipped}),
    ]


@cache
def _letters_of(path: str) -> frozenset[int]:
    """Characters that a font draws; none for bitmap fonts, which have one size, and for files that cannot be read."""
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with TTFont(path, fontNumber=0, lazy=True) as face:
            return frozenset(face.getBestCmap() or ()) if "glyf" in face or "CFF " in face else frozenset()
    except (OSError, TTLibError, KeyError):
        return frozenset()
