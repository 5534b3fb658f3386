"""Expressions as trees of entities: what is looked for, and which places, extremes and other things single it out.

:func:`parse_expression` goes by rules and needs nothing; :class:`dependency.SpacyReader` gives the same tree by a
dependency parser (extra ``parse``). What neither knows stays part of an entity's text, so no word of an expression is
lost outside a relation or an extreme.

By rules: the first relation phrase splits head from anchor; an anchor is read again, so relations nest to the right
("a left of b above c": b is above c), unless "and" joins a further relation to the head ("a left of b and above c").
"between" takes two anchors. Words for extremes are taken out of the head, with the phrase that holds them ("on the left
side of the picture"). After an ordinal ("second from left") a side is no extreme, and the words stay.
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
    """A thing that an expression speaks of.

    Attributes:
        text: what an encoder is asked, without the words that were read as places and relations.
        superlatives: relations that it has to all other candidates.
        relations: name and anchors of each relation; ``between`` has two anchors, the others one.
    """

    text: str
    superlatives: tuple[str, ...] = ()
    relations: tuple[tuple[str, tuple[Entity, ...]], ...] = ()

    def texts(self) -> list[str]:
        """The texts of the whole tree, the root's first, each once."""
        below = [t for _, anchors in self.relations for a in anchors for t in a.texts()]
        return list(dict.fromkeys([self.text, *below]))

    def outline(self, depth: int = 0) -> list[str]:
        """Lines that show the tree."""
        extremes = f"  [{', '.join(self.superlatives)}]" if self.superlatives else ""
        lines = [f"{'  ' * depth}{self.text}{extremes}"]
        for name, anchors in self.relations:
            lines.append(f"{'  ' * (depth + 1)}{name}:")
            lines += [line for a in anchors for line in a.outline(depth + 2)]
        return lines


def normalised(expression: str) -> str:
    """The expression in lower case without outer marks.

    Raises:
        UserError: for an empty expression.
    """
    words = " ".join(expression.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())
    if not words:
        raise UserError("The expression is empty.")
    return words.strip(' .,;:!?"') or words


def parse_expression(expression: str) -> Entity:
    """The tree of an expression, by rules (see the module).

    Raises:
        UserError: for an empty expression.
    """
    return _entity(normalised(expression))


def make_entity(text: str, relations: Relations) -> Entity:
    """An entity whose extremes are taken out of its text; "the others" become things of its own kind."""
    text, extremes = without_extremes(text)
    anchored = tuple(
        (name, tuple(replace(a, text=text) if means_others(a.text) else a for a in anchors))
        for name, anchors in relations
    )
    return Entity(text, extremes, anchored)


def _entity(text: str) -> Entity:
    found = next(relation_phrases(text), None)
    if found is None:
        return make_entity(text, ())
    head, rest, relations = text[: found.start()].strip(), text[found.end() :].strip(), []
    names = [RELATIONS[found[1]]]
    while True:
        # "below and left of" says two things of one anchor.
        while joined := relation_at(trimmed(rest), 0):
            names, rest = [*names, RELATIONS[joined]], trimmed(rest)[len(joined) :].strip()
        # "and" may join another relation of the head.
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
    """The anchors of a relation; None where one is missing."""
    parts = [text] if name != "between" else re.split(r"\band\b", text, maxsplit=1)
    parts = [trimmed(p) for p in parts]
    if len(parts) != 1 + (name == "between") or not all(map(is_anchor, parts)):
        return None
    return tuple(_entity(p) for p in parts)
