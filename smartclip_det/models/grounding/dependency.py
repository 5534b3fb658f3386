"""Trees of entities by a dependency parser (extra ``parse``), after ReCLIP (arXiv 2204.05991, section 3.2).

The relation phrases are those of the rules; the parser says what each belongs to. A phrase joins the thing above it in
the dependency tree with the noun below it. Every other word stays with the nearest thing above it, so that no word is
lost outside a relation or an extreme.
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

#: Sizes of spaCy's pipelines by their names, best first.
_SIZES = ("trf", "lg", "md", "sm")
#: Verbs that make of "over" and the like a direction of what is done, not the place of who does it.
_PARTICLE_VERBS = re.compile(
    "bend|carry|cross|drape|fall|flip|gaze|hang|hold|hunch|lean|look|peer|place|pour|pull|put|reach|run|sling|slouch|"
    "stare|stoop|talk|throw|tip|turn|watch|wear|wrap"
)
#: Nouns of which a side is the entity's own ("on the left side"), and what marks a side of another noun.
_PARTS = ("side", "corner", "part", "half", "region", "section", "edge", "end", "hand", "one", "left", "right")
_KEPT = "\N{MODIFIER LETTER APOSTROPHE}"
#: Dependencies of nouns.
_NOUN_LINKS = ("pobj", "dobj", "nsubj", "attr", "conj", "appos", "npadvmod")
#: What opens a phrase that English reads with the noun right before it; a participle ("wearing") goes by the parser.
_CLOSE = frozenset(["that", "which", "who", "whose", "with", "in", "on", "of", "at", "near", "by", "from", ":", "."])


@dataclass(frozen=True)
class _Link:
    """A relation phrase: the tokens ``start`` to ``stop`` - 1, its name, and the heads of its anchors."""

    start: int
    stop: int
    name: str
    anchors: tuple[Any, ...]


class SpacyReader:
    """Reads expressions by the dependency tree of a spaCy pipeline."""

    def __init__(self, model: str | Callable[[str], Any] = "auto") -> None:
        """Load a pipeline.

        Args:
            model: name of an installed pipeline with a parser, ``auto`` for the best English one that is installed,
                or anything that makes a parsed ``Doc`` of a text.

        Raises:
            UserError: when spaCy or the pipeline is not installed.
        """
        self.read = _load(model) if isinstance(model, str) else model

    def __call__(self, expression: str) -> Entity:
        """The tree of an expression.

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
        #: Anchor head to the first token that may belong to it: English says anchors after their relation.
        self.heads = {a.i: link.stop for link in self.links for a in link.anchors}
        self.in_phrase = {i for link in self.links for i in range(link.start, link.stop)}
        self.owners = {t.i: self._owner(t) for t in doc if t.i not in self.in_phrase}
        for head in sorted(self.heads):
            self._take_what_is_close(head)

    def entity(self) -> Entity:
        """The root entity."""
        return self._entity(-1, set())

    def _find_links(self) -> list[_Link]:
        links: list[_Link] = []
        for found in reversed(list(relation_phrases(self.doc.text))):
            span = self.doc.char_span(found.start(), found.end(), alignment_mode="expand")
            name = RELATIONS[found[1]]
            # "below and left of" says two things of one anchor.
            joined = links and {t.text for t in self.doc[span.end : links[-1].start]} <= {"and", ","}
            anchors = links[-1].anchors[:1] if joined and name != "between" else self._anchors(span, name)
            if anchors and not self._is_particle(span):
                links.append(_Link(span.start, links[-1].start if joined else span.end, name, anchors))
        return links[::-1]

    def _anchors(self, span: Any, name: str) -> tuple[Any, ...]:
        """The nouns below a phrase; none where there is no such noun, or it cannot be looked for."""
        below = [t for t in self.doc[span.end :] if t.head.i in range(span.start, span.end) and _is_thing(t)]
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
        """Whether a verb takes the word: "leaning over the rail" is a posture, "flying over the sea" a place."""
        return span.text in ("over", "under", "inside") and (
            span.root.dep_ == "prt" or _PARTICLE_VERBS.fullmatch(span.root.head.lemma_)
        )

    def _owner(self, token: Any) -> int:
        """The anchor head nearest above a token; -1 for the root entity."""
        seen, at = set(), token
        while at.i not in seen:
            seen.add(at.i)
            if token.i >= self.heads.get(at.i, len(self.doc)):
                return int(at.i)
            at = at.head
        return -1

    def _take_what_is_close(self, head: int) -> None:
        """A phrase right behind an anchor is the anchor's, whatever noun the parser chose ("the man with a hat")."""
        at = max(i for i, owner in self.owners.items() if owner == head) + 1
        while at < len(self.doc) and self.doc[at].text in _CLOSE and at in self.owners:
            top = self.doc[at]
            while top.head.i != top.i and top.head.left_edge.i >= at:
                top = top.head
            taken = [t.i for t in top.subtree if t.i >= at and self.owners.get(t.i) == self.owners[at]]
            if head in taken or self.owners[at] == head:
                break
            self.owners.update(dict.fromkeys(taken, head))
            at = max(taken) + 1

    def _owner_of_link(self, link: _Link) -> int:
        """The entity that a relation phrase belongs to: the nearest before it, never its own anchor."""
        top = self.doc[link.start : link.stop].root
        at, seen = top.head, {top.i}
        while at.i not in seen:
            seen.add(at.i)
            if link.start > at.i and at.i in self.heads:
                return int(at.i)
            at = at.head
        return -1

    def _entity(self, head: int, above: set[int]) -> Entity:
        mine = [i for i, owner in self.owners.items() if owner == head]
        relations = []
        for link in self.links:
            anchors = [a.i for a in link.anchors]
            if self._owner_of_link(link) != head or head in anchors or above.intersection(anchors):
                continue
            relations.append((link.name, tuple(self._entity(a, above | {head}) for a in anchors)))
        found = make_entity(self._text(head, mine), tuple(relations))
        return replace(found, text=found.text.replace(_KEPT, ""))

    def _text(self, head: int, indices: list[int]) -> str:
        """The words as they were written, runs joined by a space, without what led to a relation."""
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
        """A word; one that says the side of another noun than the entity's is marked, so that it stays."""
        token = self.doc[i]
        own = head if head >= 0 else next((c.root.i for c in self.doc.noun_chunks), i)
        of_other = token.dep_ in ("amod", "compound", "nmod") and token.head.i > own and token.head.text not in _PARTS
        return f"{_KEPT}{token.text}" if of_other and token.text in SUPERLATIVES else token.text


def _is_thing(token: Any) -> bool:
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
    """The dependency reader where a pipeline is installed, else the rules."""
    return SpacyReader() if spacy_models() else parse_expression


def reader_of(parser: str) -> Callable[[str], Entity]:
    """A reader by name: ``auto`` (:func:`default_reader`), ``rules``, or a spaCy pipeline."""
    if parser == "rules":
        return parse_expression
    return default_reader() if parser == "auto" else SpacyReader(parser)


def parser_name(parser: str) -> str:
    """What a name of :func:`reader_of` stands for here, for stamps: ``rules`` or a spaCy pipeline."""
    return parser if parser != "auto" else next(iter(spacy_models()), "rules")


def _load(model: str) -> Callable[[str], Any]:
    way_out = "pip install 'smartclip_det[parse]' brings both; --parser rules needs neither."
    try:
        import spacy
    except ImportError as error:
        raise UserError(f"The dependency parser needs spaCy and an English pipeline: {way_out}") from error
    if model == "auto":
        found = spacy_models()
        if not found:
            raise UserError(f"spaCy has no English pipeline here: {way_out}")
        model = found[0]
    try:
        return spacy.load(model, exclude=["ner"])
    except OSError as error:
        raise UserError(
            f"spaCy has no pipeline {model!r} here. Installed: {', '.join(spacy_models()) or 'none'}. {way_out}"
        ) from error
