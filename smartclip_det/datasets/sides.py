"""Left and right in sentences about images that are mirrored.

Words that change with the image are swapped, including common spellings ("lft", "rt", "2nd from L"). "left" as a verb
and "right" as "exactly" are kept. If a word may or may not mean a side, the result is None, and the image should not be
mirrored.
"""

from __future__ import annotations

import re

_PAIRS = (("left", "right"), ("lft", "rgt"), ("lt", "rt"), ("lhs", "rhs"), ("l", "r"))
_OTHER = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}
#: Misspelled sides, and the plain word for the other side.
_SPELLED = {
    "lef": "right",
    "lefft": "right",
    "leftt": "right",
    "letf": "right",
    "rght": "left",
    "rigth": "left",
    "righ": "left",
    "rigt": "left",
    "rite": "left",
    "righht": "left",
    "rightt": "left",
}
_BEFORE = r"(?:top|bottom|upper|lower|far|mid|middle|center|centre|back|front|most|very|btm|bot|up|low)?"
_AFTER = r"(?:most|side|sided|hand|handed|hander|er|est|y|ie|ward|wards|ish|s|'s)?"
_SIDE = re.compile(rf"\b({_BEFORE})({'|'.join([*_OTHER, *_SPELLED])})({_AFTER})\b", re.IGNORECASE)
#: A single letter is a side only after or before these words; otherwise it may be a letter on a shirt.
_LETTER_AFTER = re.compile(
    r"\b(?:from|on|at|to|in|far|the|very|bottom|top|upper|lower|back|front|middle|most)[ .-]*$", re.I
)
_LETTER_BEFORE = re.compile(r"[ -](?:side|hand|most|corner|edge|end)\b", re.I)
#: Phrases that do not mean a side and are kept.
_KEPT = re.compile(
    r"\b(?:who|that|which|they|he|she|has|have|had|just|already|recently) left\b(?! (?:of|side|hand|most)\b)"
    r"|\b(?:was|were|been|being|are|is) left (?:behind|alone|open|over|out|unattended|empty|uneaten)\b"
    r"|\b(?:all right|right now|right there|right here|right away|right angles?|right angled)\b",
    re.IGNORECASE,
)
#: Phrases in which "left" or "right" may or may not mean a side.
_UNKNOWN = re.compile(
    r"\bleft (?:over|alone|open|behind|out|unattended|the|a|an|his|her|its|their|home|early)\b"
    r"|\bright (?:side up|way|next|behind|beside|in front|above|below|under|by|near|at|before|after|against|over|on|up|"
    r"inside|underneath)\b"
    r"|\b(?:letter|word|sign|says|saying|reads|reading|named|called) [\"']?(?:l|r|left|right)\b"
    r"|\b(?:clockwise|anticlockwise|counterclockwise|starboard|port side|portside|eastern|western)\b|\bo ?' ?clock\b",
    re.IGNORECASE,
)
#: Compass directions are used as sides by some, so they are ambiguous.
_COMPASS = re.compile(r"\b(?:east|west|ne|nw|se|sw)(?:most|ern)?\b", re.IGNORECASE)
#: Words that contain "left" or "right" but do not mean a side.
_INNOCENT = frozenset(
    [
        "bright",
        "brighter",
        "brightest",
        "brightly",
        "brightness",
        "fright",
        "frightened",
        "frightening",
        "upright",
        "uprights",
        "outright",
        "copyright",
        "copyrighted",
        "forthright",
        "birthright",
        "playwright",
        "wright",
        "wainwright",
        "alright",
        "righteous",
        "rightful",
        "rightfully",
        "rights",
        "leftover",
        "leftovers",
        "cleft",
        "downright",
    ]
)
#: Contexts in which "left" or "right" is a side whatever follows.
_SURE = re.compile(r"\b(?:on|to|at|in|the|from|far|top|bottom|upper|lower|very) (?:left|right) $", re.IGNORECASE)
_HOLDS_SIDE = re.compile(r"\b\w*(?:left|right|lft|rght)\w*\b", re.IGNORECASE)


def mirrored_sentence(text: str) -> str | None:
    """The sentence for the mirrored image; None if it is ambiguous whether a word means a side."""
    excluded = [m.span() for m in _KEPT.finditer(text)]
    rest = _masked(text, excluded)
    if _COMPASS.search(rest):
        return None
    for match in _UNKNOWN.finditer(rest):
        opening = re.match(r"(?:left|right) ", match[0], re.IGNORECASE)
        if opening is None or not _SURE.search(rest[: match.start() + opening.end()]):
            return None
    out, at = [], 0
    sides = [m for m in _SIDE.finditer(rest) if m[0].lower() not in _INNOCENT]
    for match in sides:
        side = _exchanged(rest, match)
        if side is None:
            return None
        out += [text[at : match.start()], side]
        at = match.end()
    spans = [m.span() for m in sides]
    for match in _HOLDS_SIDE.finditer(rest):
        if not any(a <= match.start() and match.end() <= b for a, b in spans) and match[0].lower() not in _INNOCENT:
            return None
    return "".join([*out, text[at:]])


def swap_sides(text: str) -> str:
    """:func:`mirrored_sentence`, or the unchanged sentence if it is ambiguous."""
    mirrored = mirrored_sentence(text)
    return text if mirrored is None else mirrored


def _masked(text: str, spans: list[tuple[int, int]]) -> str:
    for start, stop in spans:
        text = text[:start] + " " * (stop - start) + text[stop:]
    return text


def _exchanged(text: str, match: re.Match[str]) -> str | None:
    """The word for the other side, with the same capitalisation; None for a letter that may not be a side."""
    before, side, after = match.groups()
    if len(side) == 1:
        if before or (after and after.lower() not in ("side", "hand", "most", "s")):
            return None if before else match[0]
        if not after and not (_LETTER_AFTER.search(text[: match.start()]) or _LETTER_BEFORE.match(text[match.end() :])):
            return None
    other = _OTHER.get(side.lower()) or _SPELLED[side.lower()]
    if side.isupper():
        other = other.upper()
    elif side[0].isupper():
        other = other.capitalize()
    return f"{before}{other}{after}"
