"""Expressions as trees of entities: what is looked for, and which places, extremes and other things single it out.

Two readers give the same tree. :func:`parse_expression` goes by rules and needs nothing. :class:`SpacyReader` walks the
dependency tree of a spaCy model (extra ``parse``), as ReCLIP does (arXiv 2204.05991, section 3.2). What neither knows
stays part of an entity's text, so nothing of an expression is lost.

By rules: the first relation phrase splits head from anchor; an anchor is read again, so relations nest to the right
("a left of b above c": b is above c), unless "and" joins a further relation to the head ("a left of b and above c").
"between" takes two anchors. Words for extremes are taken out of the head, with the phrase that holds them ("on the left
side of the picture"). After an ordinal ("second from left") a side is no extreme, and the words stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from smartclip_det.core.errors import UserError

#: Relation phrases to the relation's name.
RELATIONS = {
    "to the left of": "left", "on the left of": "left", "on the left side of": "left", "left of": "left",
    "west of": "left", "to the right of": "right", "on the right of": "right", "on the right side of": "right",
    "right of": "right", "east of": "right", "on top of": "above", "above": "above", "over": "above",
    "north of": "above", "behind": "above", "in back of": "above", "underneath": "below", "beneath": "below",
    "below": "below", "under": "below", "south of": "below", "in front of": "below", "bigger than": "bigger",
    "larger than": "bigger", "closer than": "bigger", "smaller than": "smaller", "tinier than": "smaller",
    "farther than": "smaller", "further than": "smaller", "inside of": "within", "inside": "within",
    "within": "within", "in between": "between", "between": "between",
}  # fmt: skip
#: Words that single out the extreme of all candidates.
SUPERLATIVES = {
    "leftmost": "left", "left": "left", "rightmost": "right", "right": "right", "topmost": "above", "top": "above",
    "uppermost": "above", "highest": "above", "bottommost": "below", "bottom": "below", "lowest": "below",
    "biggest": "bigger", "largest": "bigger", "closest": "bigger", "nearest": "bigger", "smallest": "smaller",
    "tiniest": "smaller", "farthest": "smaller", "furthest": "smaller",
}  # fmt: skip
_PLACES = r"(?:image|picture|photo|photograph|frame|screen|pic|scene)"
_HEAD_OF_PLACE = r"(?:side|corner|part|half|region|section|edge|hand side)"
_RELATION = re.compile(r"\b(" + "|".join(sorted(map(re.escape, RELATIONS), key=len, reverse=True)) + r")\b")
_EXTREME = re.compile(
    r"(?:\b(?:on|at|in|to|towards?|from) (?:the |its )?)?(?:\b(?:far|very) )?\b("
    + "|".join(sorted(SUPERLATIVES, key=len, reverse=True))
    + rf")\b(?! to\b)(?:[ -]{_HEAD_OF_PLACE}\b)?(?: of (?:the |this )?{_PLACES}\b)?"
)
#: Nouns that a dependency parser takes for things and that only say where, and dependents that stay in their chunk.
_PASSED = ("left", "right", "top", "bottom", "front", "back", "side", "part", "half", "region", "section", "image",
           "picture", "photo")  # fmt: skip
_OF_CHUNK = ("det", "punct", "amod", "compound", "nummod", "poss")
_ORDINAL = re.compile(r"\b(?:first|second|third|fourth|fifth|last|\d+(?:st|nd|rd|th)|one|two|three)\b.*\bfrom\b")
_EMPTY = ("", "the", "a", "an", "one", "the one", "thing", "the thing", "object", "the object")


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


def parse_expression(expression: str) -> Entity:
    """The tree of an expression, by rules (see the module).

    Raises:
        UserError: for an empty expression.
    """
    words = " ".join(expression.lower().replace("’", "'").split())  # noqa: RUF001
    if not words:
        raise UserError("The expression is empty.")
    return _entity(words.strip(' .,;:!?"') or words)


def _entity(text: str) -> Entity:
    found = _first_relation(text)
    if found is None:
        return _with_extremes(text, ())
    head, rest, relations = text[: found.start()].strip(), text[found.end() :].strip(), []
    name = RELATIONS[found[1]]
    while True:
        # "and" may join another relation of the head.
        more = re.search(r"\band (?:is )?(?=" + _RELATION.pattern + ")", rest)
        own = rest[: more.start()].strip() if more and more.start() else rest
        anchors = _anchors(name, own)
        if anchors is None:
            return Entity(text)
        relations.append((name, anchors))
        if own == rest or more is None:
            break
        following = _RELATION.match(rest, more.end())
        assert following is not None
        name, rest = RELATIONS[following[1]], rest[following.end() :].strip()
    return _with_extremes(head, tuple(relations))


def _first_relation(text: str) -> re.Match[str] | None:
    """The first relation phrase that has a thing on each side."""
    for found in _RELATION.finditer(text):
        before, after = text[: found.start()].strip(), text[found.end() :].strip()
        if not before or after in _EMPTY or re.match(rf"(?:the |this )?{_PLACES}\b", after):
            continue
        if _ORDINAL.search(before):
            continue
        return found
    return None


def _anchors(name: str, text: str) -> tuple[Entity, ...] | None:
    """The anchors of a relation; None where one is missing."""
    parts = [text] if name != "between" else re.split(r"\band\b", text, maxsplit=1)
    parts = [_trimmed(p) for p in parts]
    if len(parts) != 1 + (name == "between") or any(p in _EMPTY for p in parts):
        return None
    return tuple(_entity(p) for p in parts)


def _trimmed(text: str) -> str:
    """A thing without the marks and conjunctions around it."""
    return re.sub(r"^(?:and\b|[ ,.;:!?])+|(?:[ ,.;:!?]|\band)+$", "", text)


def _with_extremes(head: str, relations: tuple[tuple[str, tuple[Entity, ...]], ...]) -> Entity:
    if _ORDINAL.search(head):
        return Entity(head, (), relations)
    names = tuple(dict.fromkeys(SUPERLATIVES[w] for w in _EXTREME.findall(head)))
    stripped = " ".join(_EXTREME.sub(" ", head).split()).strip(" ,").removeprefix("of ") if names else head
    # "the left one" names nothing that an encoder could look for: the words stay, and so does the extreme.
    return Entity(head if stripped in _EMPTY else stripped, names, relations)


class SpacyReader:
    """Trees from a dependency parser: a token that heads two noun chunks' link is a relation.

    Relations without a spatial word are possessive ("with a hat"): their chunk joins the entity's text.
    """

    def __init__(self, model: str | Callable[[str], Any] = "en_core_web_sm") -> None:
        """Load a spaCy model.

        Args:
            model: name of an installed model with a parser, or anything that makes a parsed ``Doc`` of a text.

        Raises:
            UserError: when spaCy or the model is not installed.
        """
        self.read = _load_spacy(model) if isinstance(model, str) else model

    def __call__(self, expression: str) -> Entity:
        """The tree of an expression; without a noun chunk, the expression by itself."""
        doc = self.read(" ".join(expression.lower().split()))
        chunks = {chunk.root.i: chunk for chunk in doc.noun_chunks}
        if not len(doc):
            raise UserError("The expression is empty.")
        if not chunks:
            return parse_expression(expression)
        root = next((t for t in doc if t.head.i == t.i), doc[0])
        below = next((t for t in root.children if t.i in chunks), None)
        start = root if root.i in chunks else below if below is not None else chunks[min(chunks)].root
        return self._entity(start, chunks, doc)

    def _entity(self, head: Any, chunks: dict[int, Any], doc: Any) -> Entity:
        relations: list[tuple[str, tuple[Entity, ...]]] = []
        chunk = chunks[head.i]
        covered = set(range(chunk.start, chunk.end))
        for link, target in _links(head, chunks):
            name = _relation_of(" ".join(t.text for t in link))
            if target is None:
                covered |= {t.i for t in link}
            elif name is None or name == "between":
                covered |= {t.i for t in (*link, *target.subtree)}
            else:
                relations.append((name, (self._entity(target, chunks, doc),)))
        text = " ".join(doc[i].text for i in sorted(covered))
        found = _with_extremes(text, ())
        return Entity(found.text, found.superlatives, tuple(relations))


def _relation_of(words: str) -> str | None:
    """Name of the longest relation phrase in words; a trailing "of" may have been the link to the anchor."""
    for phrase in sorted(RELATIONS, key=len, reverse=True):
        if re.search(rf"\b{re.escape(phrase.removesuffix(' of'))}\b", words):
            return RELATIONS[phrase]
    return None


def _links(head: Any, chunks: dict[int, Any]) -> Iterable[tuple[list[Any], Any]]:
    """Words between an entity's head and the heads of other chunks below it, and those heads; None where none follows.

    "the left" of "to the left of the bench" is a chunk to the parser, and part of the way to "the bench" here.
    """
    waiting = [([], child) for child in head.children if child.dep_ not in _OF_CHUNK]
    while waiting:
        words, token = waiting.pop(0)
        if token.i in chunks and token.text not in _PASSED:
            if words:
                yield words, token
            continue
        below = [child for child in token.children if child.dep_ not in _OF_CHUNK]
        if not below:
            yield [*words, token], None
        waiting += [([*words, token], child) for child in below]


def _load_spacy(model: str) -> Callable[[str], Any]:
    try:
        import spacy
    except ImportError as error:
        raise UserError(
            "The dependency parser needs spaCy: pip install smartclip_det[parse]. Without it --parser rules reads "
            "relations and superlatives."
        ) from error
    try:
        return spacy.load(model)
    except OSError as error:
        raise UserError(
            f"spaCy has no model {model!r} here. `python -m spacy download {model}` installs it where the internet is; "
            "--parser rules needs none."
        ) from error
