"""Text in images: a font with the required glyphs, single-line labels, and no two labels that look the same."""

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
    """A font with the glyphs of a text: Pillow's own for Latin, otherwise one installed on this machine."""
    path = _file_for(frozenset(text))
    return ImageFont.load_default(size=size) if not path else ImageFont.truetype(path, size)


def shown_labels(texts: Sequence[str], length: int | None = None) -> dict[str, str]:
    """Label to draw for each text: one line, truncated to ``length`` characters.

    If no installed font has the glyphs of a text, its label is its number with a short hash (``#2 a3f0``), and a
    warning is logged. If a label would look like that of another text, the number is put in front.
    """
    number = {t: n for n, t in enumerate(dict.fromkeys(texts), 1)}
    lines = {t: _cut(" ".join(t.split()), length) for t in number}
    alike = Counter(lines.values())
    unreadable = {t: n for t, n in number.items() if _file_for(frozenset(lines[t])) is None}
    if unreadable:
        legend = ", ".join(f"#{n} is {t!r}" for t, n in unreadable.items())
        logger.warning("No installed font can render %d phrases, drawn as numbers: %s.", len(unreadable), legend)
    out: dict[str, str] = {}
    for t, n in number.items():
        if t in unreadable:
            # The hash distinguishes it from phrases of other images.
            out[t] = f"#{n} {zlib.crc32(t.encode()) & 0xFFFF:04x}"
        else:
            out[t] = lines[t] if alike[lines[t]] == 1 else _cut(f"#{n} {lines[t]}", length)
    return out


def fitting(text: str, font: Font, width: float) -> str:
    """Truncate a text to at most ``width`` pixels; at least its first character remains."""
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
    """A font file with all the glyphs; empty for Pillow's own font, None if there is none."""
    needed = {ord(c) for c in letters if not c.isspace()}
    # Pillow's font covers Latin-1 and some punctuation.
    if all(code < 256 for code in needed - {ord(_MORE)}):
        return ""
    return next((path for path in _files() if needed <= _letters_of(path)), None)


@cache
def _files() -> list[str]:
    """Installed outline fonts, Matplotlib's own first; without duplicates, in a fixed order.

    Last Resort is excluded, because it has one placeholder glyph per script.
    """
    from matplotlib import font_manager, get_data_path

    shipped = str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
    return [
        shipped,
        *sorted({f.fname for f in font_manager.fontManager.ttflist if "LastResort" not in f.fname} - {shipped}),
    ]


@cache
def _letters_of(path: str) -> frozenset[int]:
    """Code points that a font covers; none for bitmap fonts (fixed size) and unreadable files."""
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with TTFont(path, fontNumber=0, lazy=True) as face:
            return frozenset(face.getBestCmap() or ()) if "glyf" in face or "CFF " in face else frozenset()
    except (OSError, TTLibError, KeyError):
        return frozenset()
