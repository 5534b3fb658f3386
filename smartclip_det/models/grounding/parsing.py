"""Expressions as entity trees: the target, and the relations and superlatives that single it out.

:func:`parse_expression` is rule-based and has no dependencies; :class:`dependency.SpacyReader` builds the same tree
with a dependency parser (extra ``parse``). Words that are not recognised stay in the text of an entity, so no word
outside a relation or superlative is lost.

Rules: the first relation phrase splits head from anchor. The anchor is parsed again, so relations nest to the right
("a left of b above c": b is above c), unless "and" joins another relation to the head ("a left of b and above c").
"between" takes two anchors. Superlatives are removed from the head together with their phrase ("on the left side of the
picture"). After an ordinal ("second from left") a side is not a superlative, and the words stay.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from smartclip_det.core.errors import UserError
from smartclip_det.models.grounding.spatial_words import (
    RELATIONS,
    is_anchor,
    means_others,
    relation_at,
    relation_phrases,
    trimmed,
    without_extremes,
    without_link_words,
)

Relations = tuple[tuple[str, "tuple[Entity, ...]"], ...]


@dataclass(frozen=True)
class Entity:
    """An object that an expression refers to.

    Attributes:
        text: text to encode, without words that were parsed as superlatives or relations.
        superlatives: relations to all other candidates.
        relations: name and anchors of each relation; ``between`` has two anchors, the others one.
    """

    text: str
    superlatives: tuple[str, ...] = ()
    relations: tuple[tuple[str, tuple[Entity, ...]], ...] = ()

    def texts(self) -> list[str]:
        """The distinct texts of the tree, the root's first."""
        below = [t for _, anchors in self.relations for a in anchors for t in a.texts()]
        return list(dict.fromkeys([self.text, *below]))

    def outline(self, depth: int = 0) -> list[str]:
        """Lines of an indented outline of the tree."""
        extremes = f"  [{', '.join(self.superlatives)}]" if self.superlatives else ""
        lines = [f"{'  ' * depth}{self.text}{extremes}"]
        for name, anchors in self.relations:
            lines.append(f"{'  ' * (depth + 1)}{name}:")
            lines += [line for a in anchors for line in a.outline(depth + 2)]
        return lines


def normalised(expression: str) -> str:
    """The expression in lower case, without surrounding punctuation.

    Raises:
        UserError: for an empty expression.
    """
    words = " ".join(expression.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())
    if not words:
        raise UserError("The expression is empty.")
    return words.strip(' .,;:!?"') or words


def parse_expression(expression: str) -> Entity:
    """Parse an expression by rules, see the module docstring.

    Raises:
        UserError: for an empty expression.
    """
    return _entity(normalised(expression))


def make_entity(text: str, relations: Relations) -> Entity:
    """An entity with superlatives removed from its text; "the others" as an anchor gets the same text."""
    text, extremes = without_extremes(text)
    anchored = tuple(
        (name, tuple(replace(a, text=text) if means_others(a.text) else a for a in anchors))
        for name, anchors in relations
    )
    return Entity(text, extremes, anchored)


def _entity(text: str) -> Entity:
    match = next(relation_phrases(text), None)
    if match is None:
        return make_entity(text, ())
    head, rest, relations = text[: match.start()].strip(), text[match.end() :].strip(), []
    names = [RELATIONS[match[1]]]
    while True:
        # "below and left of" gives two relations to the same anchor.
        while joined := relation_at(trimmed(rest), 0):
            names, rest = [*names, RELATIONS[joined]], trimmed(rest)[len(joined) :].strip()
        # "and" may add another relation to the head.
        more = next((m for m in re.finditer(r"\band (?:is )?", rest) if relation_at(rest, m.end())), None)
        own = rest[: more.start()].strip() if more else rest
        for name in names:
            anchors = _anchors(name, own)
            if anchors is None:
                return make_entity(text, ())
            relations.append((name, anchors))
        if more is None:
            break
        following = relation_at(rest, more.end())
        names, rest = [RELATIONS[following]], rest[more.end() + len(following) :].strip()
    return make_entity(without_link_words(head) or head, tuple(relations))


def _anchors(name: str, text: str) -> tuple[Entity, ...] | None:
    """Anchors of a relation; None if one is missing."""
    parts = [text] if name != "between" else re.split(r"\band\b", text, maxsplit=1)
    parts = [trimmed(p) for p in parts]
    if len(parts) != 1 + (name == "between") or not all(map(is_anchor, parts)):
        return None
    return tuple(_entity(p) for p in parts)
