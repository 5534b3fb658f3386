"""Words of side in sentences about pictures that are mirrored.

What turns with the picture is exchanged, in the spellings that people type ("lft", "rt", "2nd from L"); left as a verb
and right for "exactly" stay; a word that may be either is said to be unknown, and its picture is better not mirrored.
"""

from __future__ import annotations

import re

_PAIRS = (("left", "right"), ("lft", "rgt"), ("lt", "rt"), ("lhs", "rhs"), ("l", "r"))
_OTHER = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}
#: Further spellings of a side, which turn into the plain word.
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
#: A single letter is a side after these words or before those; else it may stand on a shirt.
_LETTER_AFTER = re.compile(
    r"\b(?:from|on|at|to|in|far|the|very|bottom|top|upper|lower|back|front|middle|most)[ .-]*$", re.I
)
_LETTER_BEFORE = re.compile(r"[ -](?:side|hand|most|corner|edge|end)\b", re.I)
#: Sentences in which these stand are read as they are: no side is meant.
_KEPT = re.compile(
    r"\b(?:who|that|which|they|he|she|has|have|had|just|already|recently) left\b(?! (?:of|side|hand|most)\b)"
    r"|\b(?:was|were|been|being|are|is) left (?:behind|alone|open|over|out|unattended|empty|uneaten)\b"
    r"|\b(?:all right|right now|right there|right here|right away|right angles?|right angled)\b",
    re.IGNORECASE,
)
#: "left" and "right" here may be a side or not.
_UNKNOWN = re.compile(
    r"\bleft (?:over|alone|open|behind|out|unattended|the|a|an|his|her|its|their|home|early)\b"
    r"|\bright (?:side up|way|next|behind|beside|in front|above|below|under|by|near|at|before|after|against|over|on|up|"
    r"inside|underneath)\b"
    r"|\b(?:letter|word|sign|says|saying|reads|reading|named|called) [\"']?(?:l|r|left|right)\b"
    r"|\b(?:clockwise|anticlockwise|counterclockwise|starboard|port side|portside|eastern|western)\b|\bo ?' ?clock\b",
    re.IGNORECASE,
)
#: Compass points are sides to some: which, is not known.
_COMPASS = re.compile(r"\b(?:east|west|ne|nw|se|sw)(?:most|ern)?\b", re.IGNORECASE)
#: Words that hold "left" or "right" and are no side.
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
#: What makes a side of "left" or "right" whatever follows.
_SURE = re.compile(r"\b(?:on|to|at|in|the|from|far|top|bottom|upper|lower|very) (?:left|right) $", re.IGNORECASE)
_HOLDS_SIDE = re.compile(r"\b\w*(?:left|right|lft|rght)\w*\b", re.IGNORECASE)


def mirrored_sentence(text: str) -> str | None:
    """The sentence of a mirrored picture; None where it holds a word of which nobody knows whether it is a side."""
    kept = [m.span() for m in _KEPT.finditer(text)]
    rest = _masked(text, kept)
    if _COMPASS.search(rest):
        return None
    for found in _UNKNOWN.finditer(rest):
        opening = re.match(r"(?:left|right) ", found[0], re.IGNORECASE)
        if opening is None or not _SURE.search(rest[: found.start() + opening.end()]):
            return None
    out, at = [], 0
    sides = [m for m in _SIDE.finditer(rest) if m[0].lower() not in _INNOCENT]
    for found in sides:
        side = _exchanged(rest, found)
        if side is None:
            return None
        out += [text[at : found.start()], side]
        at = found.end()
    taken = [m.span() for m in sides]
    for found in _HOLDS_SIDE.finditer(rest):
        if not any(a <= found.start() and found.end() <= b for a, b in taken) and found[0].lower() not in _INNOCENT:
            return None
    return "".join([*out, text[at:]])


def swap_sides(text: str) -> str:
    """:func:`mirrored_sentence`, or the sentence as it is where that is not known."""
    found = mirrored_sentence(text)
    return text if found is None else found


def _masked(text: str, spans: list[tuple[int, int]]) -> str:
    for start, stop in spans:
        text = text[:start] + " " * (stop - start) + text[stop:]
    return text


def _exchanged(text: str, found: re.Match[str]) -> str | None:
    """The word with its side exchanged, capitals kept; None for a letter that may not be a side."""
    before, side, after = found.groups()
    if len(side) == 1:
        if before or (after and after.lower() not in ("side", "hand", "most", "s")):
            return None if before else found[0]
        if not after and not (_LETTER_AFTER.search(text[: found.start()]) or _LETTER_BEFORE.match(text[found.end() :])):
            return None
    other = _OTHER.get(side.lower()) or _SPELLED[side.lower()]
    if side.isupper():
        other = other.upper()
    elif side[0].isupper():
        other = other.capitalize()
    return f"{before}{other}{after}"
