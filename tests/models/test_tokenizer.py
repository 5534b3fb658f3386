from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.models.towers.tokenizer import END, START, encode, image_transform, tokenize


def test_every_published_and_reference_id_list(shared):
    folder = shared / "clip_tokenizer"
    expected = json.loads((folder / "expected.json").read_text())
    for text, ids in expected["published_samples_confirmed"]:
        assert [START, *encode(text), END] == ids
    rows = [json.loads(line) for line in (folder / "tokens.jsonl").read_text().splitlines()]
    assert len(rows) == expected["texts"]
    checked = 0
    for row in rows:
        ids = [START, *encode(row["text"]), END]
        assert ids == row["ids"], row["text"]
        for length in (77, 248):
            cut = tokenize(row["text"], length, truncate=True)[0].tolist()
            whole = ids if len(ids) <= length else [*ids[: length - 1], END]
            assert cut == whole + [0] * (length - len(whole))
        checked += 1
    assert checked == 1013


def test_too_long_texts_are_an_error_unless_truncation_is_asked_for():
    with pytest.raises(UserError, match=r"102 tokens is over the limit of 77: 'cat cat"):
        tokenize("cat " * 100)
    assert tokenize("cat " * 100, truncate=True)[0, -1] == END


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=40))
def test_any_text_has_one_start_and_one_end(text):
    ids = tokenize(text, 248)[0].tolist()
    assert ids[0] == START
    assert ids.count(END) == 1
    assert all(i == 0 for i in ids[ids.index(END) + 1 :])


@pytest.mark.parametrize("folder", ["coco_mini_train", "grayscale_jpeg"])
def test_image_preprocessing_matches_the_reference_pixels(shared, folder):
    expected = json.loads((shared / folder / "expected_clip_preprocess.json").read_text())
    expected = expected.get("images") or {expected["file"]: expected}
    checked = 0
    for name, facts in expected.items():
        path = next((shared / folder).rglob(name))
        for size in ("224", "336"):
            if size not in facts:
                continue
            pixels = image_transform(int(size))(Image.open(path)).numpy()
            assert pixels.shape == (3, int(size), int(size))
            # The expected means were summed in fp32, pixel by pixel; in that order they agree exactly.
            hwc = np.ascontiguousarray(pixels.transpose(1, 2, 0))
            assert np.allclose(hwc.mean((0, 1)), facts[size]["mean"], atol=2e-6)
            assert np.allclose(hwc.std((0, 1)), facts[size]["std"], atol=2e-6)
            checked += 1
            key = next((k for k in facts[size] if k.startswith("probe")), None)
            if key is None:
                continue
            n = int(size)
            probes = [[float(pixels[c, y, x]) for c in range(3)] for y, x in ((0, 0), (n // 2, n // 2), (n - 1, n - 1))]
            assert np.allclose(probes, facts[size][key], atol=1e-5) or np.allclose(
                np.transpose(probes), facts[size][key], atol=1e-5
            )
    assert checked == 2 * len(expected)


def test_image_statistics_are_those_of_open_clip():
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    from smartclip_det.models.towers.tokenizer import image_statistics

    assert image_statistics() == (tuple(OPENAI_DATASET_MEAN), tuple(OPENAI_DATASET_STD))
