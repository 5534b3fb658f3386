"""Spatial language: relations to other objects, and superlatives among all candidates."""

from __future__ import annotations

import re
from collections.abc import Iterator

_WAYS = ("", *(f"{w} {the}" for w in ("to", "on", "at", "in") for the in ("", "the ", "the far ", "far ")))
_PARTS = ("", " side", " hand side", "-hand side")
_SIDES = {f"{way}{side}{part} of": side for way in _WAYS for side in ("left", "right") for part in _PARTS}
#: Relation phrases and the names of their relations.
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
#: Superlatives and the relation that they maximise.
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
#: Texts that do not describe anything to search for.
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
#: Occurrences of superlative words that are not superlatives.
_NO_EXTREME = re.compile(
    "|".join(
        (
            # Body parts.
            r"\b(?:his|her|its|their|my|your|whose|'s|s') (?:(?:far|very) )?(?:left|right)\b",
            rf"\b(?:left|right)(?:[ -]hand)?(?=[ -]{_BODY})",
            # Ordinals: one of several in a row.
            rf"\b(?:second|third|fourth|fifth|\d+(?:st|nd|rd|th)) (?:most )?(?:{_any_of(SUPERLATIVES)})\b",
            # "left" as a verb, "right" as "exactly" or "correct", or the direction of a movement.
            r"\b(?:who|that|which|has|have|had|just|been|being) left\b(?! (?:of|side|hand|most)\b)",
            rf"\ball right\b|\bright(?= {_EXACTLY})",
            rf"\b{_MOVES}(?: (?:to|towards?))?(?: (?:the|its|his|her))? (?:left|right)\b(?! of\b)",
            # "top" as a garment, or the top of another object ("with a bow on top", "top of the plate").
            r"\b(?:in|with|wearing|has|having|and|tank|crop|halter) (?:an? )?(?:(?!the\b|on\b|at\b|of\b)[\w-]+ ){0,3}"
            rf"(?<!far )(?<!very )(?<!in )(?<!on )(?<!at )(?<!the )tops?\b(?! (?:of|{_SHELF}))",
            rf"\b(?:with|has|having)\b.*\bon top\b(?! {_SHELF})",
            rf"\b(?:top|bottom|left|right) (?=of )(?!{_OF_PLACE})",
            r"\b(?:on|at|in|near|by|from|to) (?:the |its )?(?:(?:far|very) )?(?:top|bottom|left|right)"
            rf"(?: {_PART})? (?=of )(?!{_OF_PLACE})",
        )
    )
)
#: Words between an object and its relation that describe neither.
_LINK_WORDS = re.compile(r"(?: (?:that|which|who|is|are|was|were|being|directly|just|slightly|located|right|and|,))+$")
#: Pronouns as anchors, which an encoder cannot search for.
_PRONOUN = re.compile(r"(?:it|him|her|them|me|us|you|itself|himself|herself|themselves|each other|one another)\b")
_POSSESSIVE = re.compile(r"(?:his|her|its|their|my|your|it ?'s)\b")
_COUNTS = r"(?:the|all|any|every|two|three|four|some|several|many)"
_OTHERS = re.compile(rf"(?:{_COUNTS} )*(?:others?|another)(?: (?:one|ones|two|three|four))?")


def relation_at(text: str, start: int) -> str:
    """The relation phrase that starts at an offset of a text; empty if there is none."""
    match = _RELATION.match(text, start)
    return match[1] if match else ""


def relation_phrases(text: str) -> Iterator[re.Match[str]]:
    """Matches of relation phrases between two objects; group 1 is a key of :data:`RELATIONS`."""
    for match in _RELATION.finditer(text):
        before, after = text[: match.start()].strip(), text[match.end() :].strip()
        of_place = re.match(rf"(?:the |this |a |an )?{_PLACES}\b", after)
        if before not in EMPTY and after not in EMPTY and not of_place and not _ORDINAL.search(before):
            yield match


def without_extremes(text: str) -> tuple[str, tuple[str, ...]]:
    """Remove superlatives from a text and return their relations; after an ordinal a side is not a superlative."""
    if _ORDINAL.search(text):
        return text, ()
    excluded = [m.span() for m in _NO_EXTREME.finditer(text)]
    matches = [m for m in _EXTREME.finditer(text) if not any(a <= m.start(1) < b for a, b in excluded)]
    stripped = text
    for m in reversed(matches):
        stripped = f"{stripped[: m.start()]} {stripped[m.end() :]}"
    stripped = " ".join(stripped.split()).strip(" ,").removeprefix("of ")
    # "the left one" without "left" leaves nothing to encode, so the words stay in the text.
    return text if stripped in EMPTY else stripped, tuple(dict.fromkeys(SUPERLATIVES[m[1]] for m in matches))


def without_link_words(text: str) -> str:
    """Remove "that is", "directly" and the like from the end of the text before a relation phrase."""
    return _LINK_WORDS.sub("", f" {text}").strip()


def trimmed(text: str) -> str:
    """Strip punctuation and conjunctions at both ends."""
    return re.sub(r"^(?:and\b|[ ,.;:!?])+|(?:[ ,.;:!?]|\band)+$", "", text)


def is_anchor(text: str) -> bool:
    """Whether a text describes an object that can be grounded by itself: not empty, "it", or "her head"."""
    return text not in EMPTY and not _PRONOUN.fullmatch(text) and not _POSSESSIVE.match(text)


def means_others(text: str) -> bool:
    """Whether an anchor refers to other objects of the same kind as the entity ("the other two")."""
    return bool(_OTHERS.fullmatch(text))
