"""Expressions as trees of entities, by rules and by dependency trees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartclip_det.core.errors import UserError
from smartclip_det.models.grounding.parsing import RELATIONS, SUPERLATIVES, Entity, SpacyReader, parse_expression


def of(text, *relations, extremes=()):
    """An entity whose anchors may be texts."""
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
    "the ball between the dog and the largest cat": of("the ball", ("between", "the dog", of("the cat", extremes=["bigger"]))),
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
    "cup left of and above the plate": of("cup", ("left", "above the plate")),
    "lamp to the left of, and behind, the plate": of("lamp to the left of, and behind, the plate"),
    "?": of("?"),
}  # fmt: skip


@pytest.mark.parametrize("text", CASES)
def test_rules(text):
    assert parse_expression(text) == CASES[text]


def test_a_tree_lists_its_texts_and_is_shown():
    tree = parse_expression("the largest cup between the plate and the jar left of the plate")
    assert tree.texts() == ["the cup", "the plate", "the jar"]
    assert tree.outline() == [
        "the cup  [bigger]", "  between:", "    the plate", "    the jar", "      left:", "        the plate",
    ]  # fmt: skip
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
    ("the dog to the left of the white bench", [1, 1, 1, 4, 2, 4, 8, 8, 5], "det ROOT prep det pobj prep det amod pobj",
     "DET NOUN ADP DET NOUN ADP DET ADJ NOUN", of("the dog", ("left", "the white bench"))),
    ("man with a hat behind the car", [0, 0, 3, 1, 0, 6, 4], "ROOT prep det pobj prep det pobj",
     "NOUN ADP DET NOUN ADP DET NOUN", of("man with a hat", ("above", "the car"))),
    ("dog on the left with a hat", [0, 0, 3, 1, 0, 6, 4], "ROOT prep det pobj prep det pobj",
     "NOUN ADP DET NOUN ADP DET NOUN", of("dog with a hat", extremes=["left"])),
    ("woman holding the umbrella above the table", [0, 0, 3, 1, 3, 6, 4], "ROOT acl det dobj prep det pobj",
     "NOUN VERB DET NOUN ADP DET NOUN", of("woman holding the umbrella above the table")),
    ("running quickly", [0, 0], "ROOT advmod", "VERB ADV", of("running quickly")),
]  # fmt: skip


@pytest.mark.parametrize(("text", "heads", "deps", "pos", "tree"), PARSED, ids=[p[0] for p in PARSED])
def test_dependency_trees(text, heads, deps, pos, tree):
    assert SpacyReader(lambda _: doc(text, heads, deps, pos))(text) == tree


def test_a_model_that_is_not_there_is_told_with_the_way_out():
    pytest.importorskip("spacy")
    with pytest.raises(UserError, match="--parser rules"):
        SpacyReader("en_core_web_absent")
