"""Entity trees from a dependency parser (extra ``parse``), after ReCLIP (arXiv 2204.05991, section 3.2).

Relation phrases are the same as in the rule-based parser; the dependency tree decides what they attach to: the noun
above a phrase is its head, the noun below it its anchor. Every other word stays with the closest entity above it, so
that no word outside a relation or superlative is lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.models.grounding.parsing import Entity, make_entity, normalised, parse_expression
from smartclip_det.models.grounding.spatial_words import (
    RELATIONS,
    SUPERLATIVES,
    is_anchor,
    relation_phrases,
    trimmed,
    without_link_words,
)

#: Size suffixes of spaCy pipeline names, best first.
_SIZES = ("trf", "lg", "md", "sm")
#: Verbs after which "over" and the like describe the action ("leaning over the rail"), not a location.
_PARTICLE_VERBS = re.compile(
    "bend|carry|cross|drape|fall|flip|gaze|hang|hold|hunch|lean|look|peer|place|pour|pull|put|reach|run|sling|slouch|"
    "stare|stoop|talk|throw|tip|turn|watch|wear|wrap"
)
#: Nouns whose side refers to the entity itself ("on the left side").
_PARTS = ("side", "corner", "part", "half", "region", "section", "edge", "end", "hand", "one", "left", "right")
#: Marks a side of another noun, so that it is not removed as a superlative.
_KEPT = "\N{MODIFIER LETTER APOSTROPHE}"
#: Dependency labels of nouns.
_NOUN_LINKS = ("pobj", "dobj", "nsubj", "attr", "conj", "appos", "npadvmod")
#: Words that open a phrase which attaches to the noun right before it; for participles ("wearing") the parser decides.
_CLOSE = frozenset(["that", "which", "who", "whose", "with", "in", "on", "of", "at", "near", "by", "from", ":", "."])


@dataclass(frozen=True)
class _Link:
    """A relation phrase: tokens ``start`` to ``stop`` - 1, the name of the relation, and the heads of its anchors."""

    start: int
    stop: int
    name: str
    anchors: tuple[Any, ...]


class SpacyReader:
    """Parses expressions with the dependency tree of a spaCy pipeline."""

    def __init__(self, model: str | Callable[[str], Any] = "auto") -> None:
        """Load a pipeline.

        Args:
            model: name of an installed pipeline with a parser, ``auto`` for the best installed English one, or a
                callable that turns a text into a parsed ``Doc``.

        Raises:
            UserError: if spaCy or the pipeline is not installed.
        """
        self.read = _load(model) if isinstance(model, str) else model

    def __call__(self, expression: str) -> Entity:
        """Parse an expression into a tree of entities.

        Raises:
            UserError: for an empty expression.
        """
        return _Tree(self.read(normalised(expression))).entity()


class _Tree:
    """The entities of one parsed expression."""

    def __init__(self, doc: Any) -> None:
        self.doc = doc
        self.links = self._find_links()
        inside = {i for link in self.links for i in range(link.start, link.stop)}
        self.links = [link for link in self.links if not any(a.i in inside for a in link.anchors)]
        #: Maps an anchor head to the first token that may belong to it: in English, anchors follow their relation.
        self.heads = {a.i: link.stop for link in self.links for a in link.anchors}
        self.in_phrase = {i for link in self.links for i in range(link.start, link.stop)}
        self.owners = {t.i: self._owner(t) for t in doc if t.i not in self.in_phrase}
        for head in sorted(self.heads):
            self._attach_adjacent_phrases(head)

    def entity(self) -> Entity:
        """The root entity."""
        return self._entity(-1, set())

    def _find_links(self) -> list[_Link]:
        links: list[_Link] = []
        for match in reversed(list(relation_phrases(self.doc.text))):
            span = self.doc.char_span(match.start(), match.end(), alignment_mode="expand")
            name = RELATIONS[match[1]]
            # "below and left of" gives two relations to the same anchor.
            joined = links and {t.text for t in self.doc[span.end : links[-1].start]} <= {"and", ","}
            anchors = links[-1].anchors[:1] if joined and name != "between" else self._anchors(span, name)
            if anchors and not self._is_particle(span):
                links.append(_Link(span.start, links[-1].start if joined else span.end, name, anchors))
        return links[::-1]

    def _anchors(self, span: Any, name: str) -> tuple[Any, ...]:
        """Nouns below a phrase; empty if there is none that can be grounded by itself."""
        below = [t for t in self.doc[span.end :] if t.head.i in range(span.start, span.end) and _is_noun(t)]
        if not below:
            below = [c.root for c in self.doc.noun_chunks if c.start == span.end]
        if not below:
            return ()
        first = below[0]
        if name == "between":
            second = next((t for t in first.children if t.dep_ == "conj" and t.i > first.i), None)
            return (first, second) if second is not None else ()
        words = " ".join(t.text for t in sorted(first.subtree) if t.i >= span.end)
        return (first,) if is_anchor(words) else ()

    def _is_particle(self, span: Any) -> bool:
        """Whether the word is part of a verb: "leaning over the rail", but not "flying over the sea"."""
        return span.text in ("over", "under", "inside") and (
            span.root.dep_ == "prt" or _PARTICLE_VERBS.fullmatch(span.root.head.lemma_)
        )

    def _owner(self, token: Any) -> int:
        """The closest anchor head above a token; -1 for the root entity."""
        seen, at = set(), token
        while at.i not in seen:
            seen.add(at.i)
            if token.i >= self.heads.get(at.i, len(self.doc)):
                return int(at.i)
            at = at.head
        return -1

    def _attach_adjacent_phrases(self, head: int) -> None:
        """Attach a phrase right after an anchor to it, whatever the parser chose ("the man with a hat")."""
        at = max(i for i, owner in self.owners.items() if owner == head) + 1
        while at < len(self.doc) and self.doc[at].text in _CLOSE and at in self.owners:
            top = self.doc[at]
            while top.head.i != top.i and top.head.left_edge.i >= at:
                top = top.head
            phrase = [t.i for t in top.subtree if t.i >= at and self.owners.get(t.i) == self.owners[at]]
            if head in phrase or self.owners[at] == head:
                break
            self.owners.update(dict.fromkeys(phrase, head))
            at = max(phrase) + 1

    def _owner_of_link(self, link: _Link) -> int:
        """The entity that a relation phrase belongs to: the closest one before it, never its own anchor."""
        top = self.doc[link.start : link.stop].root
        at, seen = top.head, {top.i}
        while at.i not in seen:
            seen.add(at.i)
            if link.start > at.i and at.i in self.heads:
                return int(at.i)
            at = at.head
        return -1

    def _entity(self, head: int, above: set[int]) -> Entity:
        tokens = [i for i, owner in self.owners.items() if owner == head]
        relations = []
        for link in self.links:
            anchors = [a.i for a in link.anchors]
            if self._owner_of_link(link) != head or head in anchors or above.intersection(anchors):
                continue
            relations.append((link.name, tuple(self._entity(a, above | {head}) for a in anchors)))
        entity = make_entity(self._text(head, tokens), tuple(relations))
        return replace(entity, text=entity.text.replace(_KEPT, ""))

    def _text(self, head: int, indices: list[int]) -> str:
        """The words as written, with runs joined by a space, without words that lead to a relation."""
        runs: list[list[int]] = []
        for i in indices:
            if runs and runs[-1][-1] == i - 1:
                runs[-1].append(i)
            else:
                runs.append([i])
        starts = {link.start for link in self.links}
        texts = []
        for run in runs:
            text = "".join(self._word(i, head) + (self.doc[i].whitespace_ if i != run[-1] else "") for i in run)
            texts.append(without_link_words(text) if run[-1] + 1 in starts else text)
        return trimmed(" ".join(t for t in texts if t))

    def _word(self, i: int, head: int) -> str:
        """A word; a side of another noun than the entity's is marked, so that it is not removed."""
        token = self.doc[i]
        own = head if head >= 0 else next((c.root.i for c in self.doc.noun_chunks), i)
        of_other = token.dep_ in ("amod", "compound", "nmod") and token.head.i > own and token.head.text not in _PARTS
        return f"{_KEPT}{token.text}" if of_other and token.text in SUPERLATIVES else token.text


def _is_noun(token: Any) -> bool:
    return token.dep_ in _NOUN_LINKS or token.pos_ in ("NOUN", "PROPN", "PRON", "NUM")


def spacy_models() -> list[str]:
    """Installed English pipelines, best first; none without spaCy."""
    try:
        from spacy.util import get_installed_models
    except ImportError:
        return []

    def size(name: str) -> int:
        return next((n for n, s in enumerate(_SIZES) if s in name.split("_")), len(_SIZES))

    return sorted((m for m in get_installed_models() if m.startswith("en_")), key=lambda m: (size(m), m))


def default_reader() -> Callable[[str], Entity]:
    """The dependency reader if a pipeline is installed, else the rule-based parser."""
    return SpacyReader() if spacy_models() else parse_expression


def reader_of(parser: str) -> Callable[[str], Entity]:
    """A reader by name: ``auto`` (:func:`default_reader`), ``rules``, or a spaCy pipeline."""
    if parser == "rules":
        return parse_expression
    return default_reader() if parser == "auto" else SpacyReader(parser)


def parser_name(parser: str) -> str:
    """The parser that a name for :func:`reader_of` resolves to, for stamps: ``rules`` or a spaCy pipeline."""
    return parser if parser != "auto" else next(iter(spacy_models()), "rules")


def _load(model: str) -> Callable[[str], Any]:
    install_hint = "pip install 'smartclip_det[parse]' installs both; --parser rules needs neither."
    try:
        import spacy
    except ImportError as error:
        raise UserError(f"The dependency parser needs spaCy and an English pipeline: {install_hint}") from error
    if model == "auto":
        models = spacy_models()
        if not models:
            raise UserError(f"No English spaCy pipeline is installed: {install_hint}")
        model = models[0]
    try:
        return spacy.load(model, exclude=["ner"])
    except OSError as error:
        raise UserError(
            f"spaCy has no pipeline {model!r}. Installed: {', '.join(spacy_models()) or 'none'}. {install_hint}"
        ) from error
