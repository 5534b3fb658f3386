"""Values of --cfg-options: MMEngine's syntax, strings kept verbatim, round trips."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartclip_det.core.errors import UserError
from smartclip_det.utils.cfg_options import format_options, format_value, parse_options, parse_value

READ = {
    "a photo of a {}.": "a photo of a {}.",
    "['a photo of a {}.','a drawing of the {}.']": ["a photo of a {}.", "a drawing of the {}."],
    "[a photo of a {}., b]": ["a photo of a {}.", "b"],
    "/data/my photos/": "/data/my photos/",
    "/data/a,b/": "/data/a,b/",
    "/data/[old]/1.json": "/data/[old]/1.json",
    "[old] photos/": "[old] photos/",
    "(a)b, c": "(a)b, c",
    "C:\\data\\new": "C:\\data\\new",
    "man's hat, 2": "man's hat, 2",
    "'it''s'": "it's",
    '"it\'s"': "it's",
    "12": 12,
    "-3": -3,
    "1e-3": 1e-3,
    ".5": 0.5,
    "000123": "000123",
    "2024_01": "2024_01",
    "'12'": "12",
    "['12',12]": ["12", 12],
    "true": True,
    "False": False,
    "None": None,
    "'None'": "None",
    "": "",
    "[]": [],
    "()": (),
    "(1)": (1,),
    "[1, 2,]": [1, 2],
    "640,480": [640, 480],
    "'a','b'": ["a", "b"],
    "cat,dog": "cat,dog",
    "(640,640)": (640, 640),
    "[(1333,640),(1333,800)]": [(1333, 640), (1333, 800)],
    "[[a,(b,c)],None,true]": [["a", ("b", "c")], None, True],
}


@pytest.mark.parametrize("text", READ)
def test_what_is_read(text):
    found = parse_value(text)
    assert found == READ[text]
    assert repr(found) == repr(READ[text]), "types as well"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1,", "not closed"),
        ("'a", "not closed"),
        ("'a' b", "after its closing quote"),
        ("[1,2]]", "closes more"),
        ("[a,'b]", "not closed"),
    ],
)
def test_what_is_refused(text, said):
    with pytest.raises(UserError, match=said):
        parse_value(text)


def test_pairs():
    assert parse_options(["a.b=1", "c==x", "a.b=2"]) == {"a.b": 2, "c": "=x"}
    for wrong in ("photos/", "=3"):
        with pytest.raises(UserError, match="KEY=VALUE"):
            parse_options([wrong])
    with pytest.raises(UserError, match="--cfg-options k: the bracket"):
        parse_options(["k=[1"])


texts = st.text() | st.text(alphabet="'\",[]() a1.\\={}_e-")
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
values = st.recursive(leaves, lambda c: st.lists(c, max_size=4) | st.lists(c, max_size=4).map(tuple), max_leaves=12)


@given(values)
def test_there_and_back(value):
    found = parse_value(format_value(value))
    assert found == value
    assert repr(found) == repr(value), "types as well"


@given(st.dictionaries(st.sampled_from(["a", "model.policy", "hooks.0.x"]), values, min_size=1, max_size=4))
def test_a_command_there_and_back(options):
    word, *pairs = format_options(options)
    assert word == "--cfg-options"
    assert parse_options(pairs) == options


def test_paths_are_written_as_text_and_other_things_are_refused():
    assert parse_value(format_value(Path("/data/a, b/12"))) == "/data/a, b/12"
    assert parse_value(format_value(Path("12"))) == "12"
    assert format_options({}) == []
    with pytest.raises(TypeError, match="dict"):
        format_value({"a": 1})
