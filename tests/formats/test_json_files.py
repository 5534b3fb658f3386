"""JSON variants found in practice."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartclip_det.core.errors import UserError
from smartclip_det.formats.json_files import open_text, parse_json, read_json

FORMS = {
    "plain": lambda text: text.encode(),
    "bom": lambda text: text.encode("utf-8-sig"),
    "utf16": lambda text: text.encode("utf-16"),
    "utf16 without mark": lambda text: text.encode("utf-16-le"),
    "utf32": lambda text: text.encode("utf-32"),
    "gz": lambda text: gzip.compress(text.encode()),
    "gz of utf16": lambda text: gzip.compress(text.encode("utf-16")),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_whole_and_in_pieces(form, tmp_path):
    data = [{"name": "Zürich ☃", "n": n, "x": n / 7} for n in range(50)]
    path = tmp_path / "a.json"
    path.write_bytes(FORMS[form](json.dumps(data, ensure_ascii=False)))
    assert read_json(path, "file") == data
    with open_text(path) as handle:
        pieces = list(iter(lambda: handle.read(37), ""))
    assert json.loads("".join(pieces)) == data


def test_what_is_broken_is_named(tmp_path):
    def refuse(content, message):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_json(tmp_path / "a.json", "file")

    refuse(b'[{"a": 1}', "not valid JSON.*truncated")
    refuse(b"{oops}" + b" " * 1000, r"not valid JSON \(.*\)\.$")
    refuse(b"", "is empty")
    refuse(gzip.compress(b"[1, 2, 3]" * 100)[:-20], "gzipped.*truncated")
    refuse(b'"\xff\xfe\xfa"', "not Unicode text")
    refuse(b"[" * 200_000 + b"]" * 200_000, "nested too deep")
    refuse(b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "nested too deep")
    refuse(b"9" * 5000, "not valid JSON")
    with pytest.raises(UserError, match="No thing at"):
        read_json(tmp_path / "none.json", "thing")


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_non_finite_numbers_are_named_by_place(word):
    text = '{"images": [{"id": 1}], "annotations": [{"area": 1.0}, {"area": WORD, "b": NaN}]}'.replace("WORD", word)
    with pytest.raises(UserError, match=rf"annotations\[1\]\.area is {word}"):
        parse_json(text, "x.json")
    with pytest.raises(UserError, match=rf"\[1\]\[0\] is {word}"):
        parse_json(f"[0, [{word}]]", "x.json")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    )
)
def test_good_json_is_what_python_reads(data):
    assert parse_json(json.dumps(data), "x") == data
