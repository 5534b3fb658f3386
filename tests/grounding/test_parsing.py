"""Expressions parsed into trees of entities, by rules and by dependency trees."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartclip_det.core.errors import UserError
from smartclip_det.models.grounding.dependency import SpacyReader, default_reader, spacy_models
from smartclip_det.models.grounding.parsing import Entity, normalised, parse_expression
from smartclip_det.models.grounding.spatial_words import RELATIONS, SUPERLATIVES


def of(text, *relations, extremes=()):
    """An entity; anchors can be given as strings."""
    made = tuple((n, tuple(a if isinstance(a, Entity) else Entity(a) for a in anchors)) for n, *anchors in relations)
    return Entity(text, tuple(extremes), made)


CASES = {
    "the red heart": of("the red heart"),
    "The leftmost  star": of("the star", extremes=["left"]),
    "the star to the left of the red heart": of("the star", ("left", "the red heart")),
    "biggest dog above the cat": of("dog", ("above", "the cat"), extremes=["bigger"]),
    "person under umbrella.": of("person", ("below", "umbrella")),
    "cup on top of the box behind the lamp": of("cup", ("above", of("the box", ("above", "the lamp")))),
    "dog left of the cat and above the bench": of("dog", ("left", "the cat"), ("above", "the bench")),
    "the ball between the dog and the largest cat": of(
        "the ball", ("between", "the dog", of("the cat", extremes=["bigger"]))
    ),
    "the man between two dogs": of("the man between two dogs"),
    "dog on the left": of("dog", extremes=["left"]),
    "man in the top right corner of the picture": of("man", extremes=["above", "right"]),
    "boy on left in red": of("boy in red", extremes=["left"]),
    "right half of the sandwich": of("the sandwich", extremes=["right"]),
    "chair closest to the window": of("chair closest to the window"),
    "closest zebra": of("zebra", extremes=["bigger"]),
    "second man from the left": of("second man from the left"),
    "person in front of the bus with a hat": of("person", ("below", "the bus with a hat")),
    "the left one": of("the left one", extremes=["left"]),
    "above": of("above"),
    "leftover soup in a bright bowl": of("leftover soup in a bright bowl"),
    "dog left of the picture": of("dog", extremes=["left"]),
    "dog left of cat and below": of("dog left of cat and below"),
    "cup left of and above the plate": of("cup", ("left", "the plate"), ("above", "the plate")),
    "lamp to the left of, and behind, the plate": of("lamp", ("left", "the plate"), ("above", "the plate")),
    "zebra is to left of another one": of("zebra", ("left", "zebra")),
    "the zebra on the far right side of the others": of("the zebra", ("right", "the zebra")),
    "the truck that is directly behind the bus": of("the truck", ("above", "the bus")),
    # Not searched for on their own: pronouns and anaphoric phrases.
    "table with a lamp on top of it": of("table with a lamp on top of it"),
    "woman with an umbrella over her head": of("woman with an umbrella over her head"),
    # Not superlatives here.
    "man with a phone in his left hand": of("man with a phone in his left hand"),
    "the man who left the room": of("the man who left the room"),
    "dog looking to the left": of("dog looking to the left"),
    "girl in a pink top": of("girl in a pink top"),
    "girl in the top row": of("girl row", extremes=["above"]),
    "cake with a cherry on top": of("cake with a cherry on top"),
    "bed nearest the window": of("bed nearest the window"),
    "half banana top of plate": of("half banana top of plate"),
    "the 3rd farthest plane": of("the 3rd farthest plane"),
    "?": of("?"),
}


@pytest.mark.parametrize("text", CASES)
def test_rules(text):
    assert parse_expression(text) == CASES[text]


def test_a_tree_lists_its_texts_and_is_shown():
    tree = parse_expression("the largest cup between the plate and the jar left of the plate")
    assert tree.texts() == ["the cup", "the plate", "the jar"]
    assert tree.outline() == [
        "the cup  [bigger]",
        "  between:",
        "    the plate",
        "    the jar",
        "      left:",
        "        the plate",
    ]
    with pytest.raises(UserError, match="empty"):
        parse_expression("  ")


@given(
    st.lists(
        st.sampled_from(["dog", "the", "cat", "red", "and", "of", "image", *RELATIONS, *SUPERLATIVES]),
        min_size=1,
        max_size=12,
    )
)
def test_no_expression_fails_and_every_entity_has_a_text(words):
    text = " ".join(words)
    for t in parse_expression(text).texts():
        assert t.strip()
        assert all(word in text.split() for word in t.split())


@given(st.text(min_size=1, max_size=40))
def test_any_text_has_a_tree(text):
    assert parse_expression(f"dog {text}").text


def doc(text, heads, deps, pos):
    spacy = pytest.importorskip("spacy")
    return spacy.tokens.Doc(
        spacy.blank("en").vocab, words=text.split(), heads=heads, deps=deps.split(), pos=pos.split()
    )


PARSED = [
    (
        "the dog to the left of the white bench",
        [1, 1, 1, 4, 2, 4, 8, 8, 5],
        "det ROOT prep det pobj prep det amod pobj",
        "DET NOUN ADP DET NOUN ADP DET ADJ NOUN",
        of("the dog", ("left", "the white bench")),
    ),
    (
        "man with a hat behind the car",
        [0, 0, 3, 1, 0, 6, 4],
        "ROOT prep det pobj prep det pobj",
        "NOUN ADP DET NOUN ADP DET NOUN",
        of("man with a hat", ("above", "the car")),
    ),
    (
        "dog on the left with a hat",
        [0, 0, 3, 1, 0, 6, 4],
        "ROOT prep det pobj prep det pobj",
        "NOUN ADP DET NOUN ADP DET NOUN",
        of("dog with a hat", extremes=["left"]),
    ),
    (
        "woman holding the umbrella above the table",
        [0, 0, 3, 1, 3, 6, 4],
        "ROOT acl det dobj prep det pobj",
        "NOUN VERB DET NOUN ADP DET NOUN",
        of("woman holding the umbrella", ("above", "the table")),
    ),
    ("running quickly", [0, 0], "ROOT advmod", "VERB ADV", of("running quickly")),
]


@pytest.mark.parametrize(("text", "heads", "deps", "pos", "tree"), PARSED, ids=[p[0] for p in PARSED])
def test_dependency_trees(text, heads, deps, pos, tree):
    assert SpacyReader(lambda _: doc(text, heads, deps, pos))(text) == tree


STOP = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "to",
        "in",
        "on",
        "at",
        "is",
        "are",
        "that",
        "which",
        "who",
        "and",
        "it",
        "its",
        "some",
        "one",
        "two",
        "three",
        "another",
    ]
)


@pytest.fixture(scope="module")
def real_expressions(shared):
    """2,493 human expressions of RefCOCOg (Google), validation."""
    lines = (shared / "refcocog_google_val/expressions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["refexp"] for line in lines]


@pytest.fixture(scope="module")
def reader():
    if not spacy_models():
        pytest.skip("no spaCy pipeline is installed: pip install smartclip_det[parse]")
    return SpacyReader()


def lost_words(expression, tree):
    """Words that are in no text of the tree and belong to no relation or extreme."""
    kept = set(re.findall(r"[a-z0-9]+", " ".join(tree.texts())))
    spatial = {w for phrase in [*RELATIONS, *SUPERLATIVES] for w in re.findall(r"[a-z]+", phrase)}
    places = re.findall(
        r"\w+",
        "very side corner part half region section edge end towards image picture photo photograph frame "
        "screen pic scene view shot room directly just slightly located right other others",
    )
    return set(re.findall(r"[a-z0-9]+", expression.lower())) - kept - spatial - {*places} - STOP


def test_no_word_of_real_expressions_is_lost_by_rules(real_expressions):
    assert {e: w for e in real_expressions if (w := lost_words(e, parse_expression(e)))} == {}


def test_no_word_of_real_expressions_is_lost_by_the_dependency_reader(real_expressions, reader):
    assert len(real_expressions) == 2493
    texts = [normalised(e) for e in real_expressions]
    parsed = dict(zip(texts, reader.read.pipe(texts), strict=True))
    trees = map(SpacyReader(parsed.__getitem__), real_expressions)
    assert {e: w for e, tree in zip(real_expressions, trees, strict=True) if (w := lost_words(e, tree))} == {}


def is_right(tree, wanted):
    """Extremes, relations and names of their anchors, at any depth, annotated by hand."""

    def relations(entity):
        for name, anchors in entity.relations:
            for anchor in anchors:
                yield name, anchor.text
                yield from relations(anchor)

    found = list(relations(tree))
    return (
        sorted(tree.superlatives) == sorted(wanted["extremes"])
        and len(found) == len(wanted["relations"])
        and all(
            name == n and word in text.split()
            for (name, text), (n, word) in zip(found, wanted["relations"], strict=True)
        )
    )


def test_relations_of_a_checked_sample(real_expressions, reader):
    """100 expressions with a spatial word, annotated by hand; the file contains line numbers, not the sentences."""
    sample = json.loads((Path(__file__).parent / "refcocog_relations.json").read_text(encoding="utf-8"))
    assert len(sample) == 100
    wrong = [
        real_expressions[w["line"] - 1] for w in sample if not is_right(reader(real_expressions[w["line"] - 1]), w)
    ]
    assert len(wrong) <= 10, wrong
    by_rules = [w for w in sample if not is_right(parse_expression(real_expressions[w["line"] - 1]), w)]
    assert len(by_rules) >= len(wrong), "the rules read better: they should be the default"


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a child being held my a man", of("a child being held my a man")),
        ("bear to the left of purple ribbon", of("bear", ("left", "purple ribbon"))),
        ("a lady holding a baby and a giant slice of pizza", of("a lady holding a baby and a giant slice of pizza")),
        (
            "little girl on the left side of the umbrella wearing light green socks",
            of("little girl wearing light green socks", ("left", "the umbrella")),
        ),
        ("the helmet on the right handlebar", of("the helmet on the right handlebar")),
    ],
)
def test_trees_of_a_real_parser(reader, text, tree):
    assert reader(text) == tree


def test_the_better_reader_is_the_default_where_it_is_installed(monkeypatch):
    assert isinstance(default_reader(), SpacyReader) == bool(spacy_models())
    monkeypatch.setattr("smartclip_det.models.grounding.dependency.spacy_models", list)
    assert default_reader() is parse_expression
    with pytest.raises(UserError, match="parse"):
        SpacyReader()


def test_a_model_that_is_not_there_is_told_with_the_way_out():
    pytest.importorskip("spacy")
    with pytest.raises(UserError, match="--parser rules"):
        SpacyReader("en_core_web_absent")
