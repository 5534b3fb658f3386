"""Words that say where a thing is: relations to other things, and extremes among all candidates."""

from __future__ import annotations

import re
from collections.abc import Iterator

_WAYS = ("", *(f"{w} {the}" for w in ("to", "on", "at", "in") for the in ("", "the ", "the far ", "far ")))
_PARTS = ("", " side", " hand side", "-hand side")
_SIDES = {f"{way}{side}{part} of": side for way in _WAYS for side in ("left", "right") for part in _PARTS}
#: Relation phrases to the relation's name.
RELATIONS = _SIDES | {
    "west of": "left",
    "east of": "right",
    "on top of": "above",
    "above": "above",
    "over": "above",
    "north of": "above",
    "behind": "above",
    "in back of": "above",
    "underneath": "below",
    "beneath": "below",
    "below": "below",
    "under": "below",
    "south of": "below",
    "in front of": "below",
    "bigger than": "bigger",
    "larger than": "bigger",
    "closer than": "bigger",
    "smaller than": "smaller",
    "tinier than": "smaller",
    "farther than": "smaller",
    "further than": "smaller",
    "inside of": "within",
    "inside": "within",
    "within": "within",
    "in between": "between",
    "between": "between",
}
#: Words that single out the extreme of all candidates.
SUPERLATIVES = {
    "leftmost": "left",
    "left": "left",
    "rightmost": "right",
    "right": "right",
    "topmost": "above",
    "top": "above",
    "uppermost": "above",
    "highest": "above",
    "bottommost": "below",
    "bottom": "below",
    "lowest": "below",
    "biggest": "bigger",
    "largest": "bigger",
    "closest": "bigger",
    "nearest": "bigger",
    "smallest": "smaller",
    "tiniest": "smaller",
    "farthest": "smaller",
    "furthest": "smaller",
}
#: Texts that name nothing that could be looked for.
EMPTY = ("", "the", "a", "an", "one", "the one", "thing", "the thing", "object", "the object")


def _any_of(words: object) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))  # type: ignore[call-overload]


_PLACES = r"(?:image|picture|photo|photograph|frame|screen|pic|scene|view|shot|room)"
_OF_PLACE = rf"of (?:the |this |a |an )?{_PLACES}\b"
_PART = r"(?:side|corner|part|half|region|section|edge|end|hand side)"
_RELATION = re.compile(rf"\b({_any_of(RELATIONS)})\b")
_EXTREME = re.compile(
    r"(?:\b(?:on|at|in|to|towards?|from) (?:the |its )?)?(?:\b(?:far|very) )?"
    rf"\b({_any_of(SUPERLATIVES)})\b(?! (?:to|from|the)\b)(?:[ -]{_PART}\b)?(?: {_OF_PLACE})?"
)
_ORDINAL = re.compile(r"\b(?:first|second|third|fourth|fifth|last|\d+(?:st|nd|rd|th)|one|two|three)\b.*\bfrom\b")
_BODY = r"(?:hand(?!ed)|arm|leg|foot|eye|ear|wrist|knee|shoulder|elbow|paw|wing|tusk|horn)s?\b"
_EXACTLY = r"(?:next|beside|behind|in front|above|below|under|by|near|now|there|here|angle|side up|way)\b"
_MOVES = (
    r"(?:(?:fac|look|walk|mov|turn|point|head|lean|runn|go|swing|star|gaz|travel|driv|fly|swimm)(?:ing|ed|s|es)"
    r"|look|face|head|go|turn)"
)
_SHELF = r"(?:left|right|corner|row|shelf|half|part|side)\b"
#: Words for extremes that are none here.
_NO_EXTREME = re.compile(
    "|".join(
        (
            # A side of somebody's body.
            r"\b(?:his|her|its|their|my|your|whose|'s|s') (?:(?:far|very) )?(?:left|right)\b",
            rf"\b(?:left|right)(?:[ -]hand)?(?=[ -]{_BODY})",
            # One of several in a row.
            rf"\b(?:second|third|fourth|fifth|\d+(?:st|nd|rd|th)) (?:most )?(?:{_any_of(SUPERLATIVES)})\b",
            # Left as a verb, right for "exactly" or "correct", the direction of a movement.
            r"\b(?:who|that|which|has|have|had|just|been|being) left\b(?! (?:of|side|hand|most)\b)",
            rf"\ball right\b|\bright(?= {_EXACTLY})",
            rf"\b{_MOVES}(?: (?:to|towards?))?(?: (?:the|its|his|her))? (?:left|right)\b(?! of\b)",
            # A garment, the top of something else ("with a bow on top", "top of the plate").
            r"\b(?:in|with|wearing|has|having|and|tank|crop|halter) (?:an? )?(?:(?!the\b|on\b|at\b|of\b)[\w-]+ ){0,3}"
            rf"(?<!far )(?<!very )(?<!in )(?<!on )(?<!at )(?<!the )tops?\b(?! (?:of|{_SHELF}))",
            rf"\b(?:with|has|having)\b.*\bon top\b(?! {_SHELF})",
            rf"\b(?:top|bottom|left|right) (?=of )(?!{_OF_PLACE})",
            r"\b(?:on|at|in|near|by|from|to) (?:the |its )?(?:(?:far|very) )?(?:top|bottom|left|right)"
            rf"(?: {_PART})? (?=of )(?!{_OF_PLACE})",
        )
    )
)
#: Words that lead from a thing to its relation and describe neither.
_LINK_WORDS = re.compile(r"(?: (?:that|which|who|is|are|was|were|being|directly|just|slightly|located|right|and|,))+$")
#: Anchors that stand for something said before: an encoder cannot look for them.
_PRONOUN = re.compile(r"(?:it|him|her|them|me|us|you|itself|himself|herself|themselves|each other|one another)\b")
_POSSESSIVE = re.compile(r"(?:his|her|its|their|my|your|it ?'s)\b")
_COUNTS = r"(?:the|all|any|every|two|three|four|some|several|many)"
_OTHERS = re.compile(rf"(?:{_COUNTS} )*(?:others?|another)(?: (?:one|ones|two|three|four))?")


def relation_at(text: str, start: int) -> str:
    """The relation phrase that starts at a place of a text; empty where none does."""
    found = _RELATION.match(text, start)
    return found[1] if found else ""


def relation_phrases(text: str) -> Iterator[re.Match[str]]:
    """Relation phrases with something on each side that is no place; group 1 is a key of :data:`RELATIONS`."""
    for found in _RELATION.finditer(text):
        before, after = text[: found.start()].strip(), text[found.end() :].strip()
        of_place = re.match(rf"(?:the |this |a |an )?{_PLACES}\b", after)
        if before not in EMPTY and after not in EMPTY and not of_place and not _ORDINAL.search(before):
            yield found


def without_extremes(text: str) -> tuple[str, tuple[str, ...]]:
    """A text without its words for extremes, and the names of those; after an ordinal a side is no extreme."""
    if _ORDINAL.search(text):
        return text, ()
    kept = [m.span() for m in _NO_EXTREME.finditer(text)]
    found = [m for m in _EXTREME.finditer(text) if not any(a <= m.start(1) < b for a, b in kept)]
    stripped = text
    for m in reversed(found):
        stripped = f"{stripped[: m.start()]} {stripped[m.end() :]}"
    stripped = " ".join(stripped.split()).strip(" ,").removeprefix("of ")
    # "the left one" names nothing that an encoder could look for: the words stay, and so does the extreme.
    return text if stripped in EMPTY else stripped, tuple(dict.fromkeys(SUPERLATIVES[m[1]] for m in found))


def without_link_words(text: str) -> str:
    """The text before a relation phrase without "that is", "directly" and the like."""
    return _LINK_WORDS.sub("", f" {text}").strip()


def trimmed(text: str) -> str:
    """A thing without the marks and conjunctions around it."""
    return re.sub(r"^(?:and\b|[ ,.;:!?])+|(?:[ ,.;:!?]|\band)+$", "", text)


def is_anchor(text: str) -> bool:
    """Whether a text names a thing that can be looked for by itself: neither empty nor "it" nor "her head"."""
    return text not in EMPTY and not _PRONOUN.fullmatch(text) and not _POSSESSIVE.match(text)


def means_others(text: str) -> bool:
    """Whether an anchor is further things of the entity's own kind ("the other two")."""
    return bool(_OTHERS.fullmatch(text))
