"""Side words in flipped images: what changes, what does not, and what is unknown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartclip_det.datasets.sides import mirrored_sentence, swap_sides

TURNED = {
    "far rt guy": "far lt guy",
    "lft girl": "rgt girl",
    "leftside chair": "rightside chair",
    "2nd from L": "2nd from R",
    "rightside man": "leftside man",
    "lefty": "righty",
    "left-hand side": "right-hand side",
    "Left one": "Right one",
    "LEFT": "RIGHT",
    "the r side": "the l side",
    "topleft kid": "topright kid",
    "upper right": "upper left",
    "bottomleft": "bottomright",
    "second left from the right": "second right from the left",
    "rigth dog": "left dog",
    "leftmost, not rightmost": "rightmost, not leftmost",
    "man on right in front": "man on left in front",
    "the dog left of the cat": "the dog right of the cat",
    "LHS": "RHS",
    "guy who is left of her": "guy who is right of her",
    "cup far left behind the jar": "cup far right behind the jar",
    "white's left": "white's right",
}
KEPT = [
    "the one who left the room",
    "all right",
    "copyright",
    "bright upright bass",
    "leftovers",
    "the cake has left a stain",
    "an umbrella was left open",
    "right now",
    "a red cup",
    "right angle",
    "the cleft rock",
    "it",
    "",
]
UNKNOWN = [
    "guy right behind the tree",
    "pizza left over",
    "bag left alone",
    "right side up cup",
    "the letter L",
    "shirt that says left",
    "bleftx",
    "cat at 3 o'clock",
    "west tower",
    "sw corner",
    "right by the door",
    "r shirt",
]


@pytest.mark.parametrize("text", TURNED)
def test_sides_turn_in_every_spelling(text):
    assert mirrored_sentence(text) == TURNED[text]


@pytest.mark.parametrize("text", KEPT)
def test_what_is_no_side_stays(text):
    assert mirrored_sentence(text) == text


@pytest.mark.parametrize("text", UNKNOWN)
def test_what_may_be_a_side_or_not_is_said_to_be_unknown(text):
    assert mirrored_sentence(text) is None
    assert swap_sides(text) == text


WORDS = st.sampled_from(
    [
        "left",
        "right",
        "lft",
        "rgt",
        "lt",
        "rt",
        "LEFT",
        "Rightmost",
        "leftside",
        "the",
        "cup",
        "of",
        "topleft",
        "from R",
        "bright",
        "who left",
        "far",
        "on",
        "and",
    ]
)


@given(st.lists(WORDS, max_size=8).map(" ".join))
def test_turning_twice_changes_nothing(text):
    once = mirrored_sentence(text)
    if once is not None and "who left" not in text and "who right" not in once:
        assert mirrored_sentence(once) in (text, None)


@given(st.text(max_size=30))
def test_any_text_has_an_answer(text):
    found = mirrored_sentence(text)
    assert found is None or isinstance(found, str)
