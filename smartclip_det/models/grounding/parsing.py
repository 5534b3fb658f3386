"""Spatial words of a referring expression, by rules.

An expression is ``HEAD``, ``HEAD RELATION ANCHOR``, and HEAD may hold a superlative. What no rule knows stays part of
the head, so nothing is lost: the head of an expression without spatial words is the expression itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Relation phrases, longest first, to the relation's name.
RELATIONS = {
    "to the left of": "left", "on the left of": "left", "left of": "left", "west of": "left",
    "to the right of": "right", "on the right of": "right", "right of": "right", "east of": "right",
    "on top of": "above", "above": "above", "over": "above", "north of": "above",
    "underneath": "below", "beneath": "below", "below": "below", "under": "below", "south of": "below",
    "bigger than": "bigger", "larger than": "bigger", "smaller than": "smaller", "inside of": "within",
    "inside": "within", "within": "within",
}  # fmt: skip
#: Words that single out the extreme of all candidates.
SUPERLATIVES = {
    "leftmost": "left", "left": "left", "rightmost": "right", "right": "right", "topmost": "above", "top": "above",
    "uppermost": "above", "highest": "above", "bottommost": "below", "bottom": "below", "lowest": "below",
    "biggest": "bigger", "largest": "bigger", "smallest": "smaller", "tiniest": "smaller",
}  # fmt: skip
_RELATION = re.compile(r"\b(" + "|".join(sorted(map(re.escape, RELATIONS), key=len, reverse=True)) + r")\b")
_SUPERLATIVE = re.compile(r"\b(" + "|".join(sorted(SUPERLATIVES, key=len, reverse=True)) + r")\b")


@dataclass(frozen=True)
class ParsedExpression:
    """The parts of an expression.

    Attributes:
        head: what is looked for, without its spatial words.
        superlatives: names of relations that the target has to all other candidates for the head.
        relation: name of the relation to the anchor, or empty.
        anchor: the text of the anchor, or empty.
    """

    head: str
    superlatives: tuple[str, ...] = ()
    relation: str = ""
    anchor: str = ""


def parse_expression(expression: str) -> ParsedExpression:
    """Split at the first relation phrase, then take superlatives out of the head."""
    text = " ".join(expression.lower().split())
    relation, anchor, head = "", "", text
    found = _RELATION.search(text)
    if found and text[: found.start()].strip() and text[found.end() :].strip():
        relation = RELATIONS[found[1]]
        head, anchor = text[: found.start()].strip(), text[found.end() :].strip()
    superlatives = tuple(SUPERLATIVES[w] for w in _SUPERLATIVE.findall(head))
    stripped = " ".join(_SUPERLATIVE.sub(" ", head).split()) if superlatives else head
    if not stripped or stripped in ("the", "a", "an"):
        return ParsedExpression(head, (), relation, anchor)
    return ParsedExpression(stripped, superlatives, relation, anchor)
