from __future__ import annotations

import time

import pytest
import torch

from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.similarity import masked_cosine
from smartclip_det.core.text_bank import TextBank


def make(names=("cat", "dog", "bus"), rows=(0, 0, 1, 2, 2), d=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    k = len(rows)
    probs = torch.rand(k, d, generator=g)
    background = TextBank(("background",), torch.randn(1, d, generator=g), torch.ones(1, d))
    return TextBank(
        names=names,
        embeds=torch.randn(k, d, generator=g),
        masks=(probs > 0.5).float(),
        mask_probs=probs,
        texts=tuple(f"text {i}" for i in range(k)),
        class_index=torch.tensor(rows),
        seen=[True, False, True],
        provenance={"checkpoint_hash": "abc"},
        background=background,
    )


def same(a: TextBank, b: TextBank) -> bool:
    tensors = all(
        torch.equal(getattr(a, n), getattr(b, n)) for n in ("embeds", "masks", "class_index", "seen", "mask_probs")
    )
    return tensors and a.names == b.names and a.texts == b.texts and a.provenance == b.provenance


def test_save_and_load_are_exact(tmp_path):
    bank = make()
    bank.save(tmp_path / "bank.safetensors")
    loaded = TextBank.load(tmp_path / "bank.safetensors")
    assert same(bank, loaded)
    assert torch.equal(loaded.background.embeds, bank.background.embeds)


def test_a_background_of_several_rows_survives(tmp_path):
    background = TextBank(
        ("background",),
        torch.randn(3, 16),
        torch.ones(3, 16),
        texts=("a", "b", "c"),
        class_index=torch.zeros(3),
        mask_probs=torch.rand(3, 16),
        provenance={"x": "y"},
    )
    bank = TextBank(("cat",), torch.randn(1, 16), torch.ones(1, 16), background=background)
    bank.save(tmp_path / "bank.safetensors")
    assert same(TextBank.load(tmp_path / "bank.safetensors").background, background)


def test_select_reorders_classes_with_all_their_rows():
    bank = make().select(["bus", "cat"])
    assert bank.names == ("bus", "cat")
    assert bank.texts == ("text 3", "text 4", "text 0", "text 1")
    assert bank.class_index.tolist() == [0, 0, 1, 1]
    assert bank.seen.tolist() == [True, True]


def test_cat_joins_and_refuses_repeats():
    other = make(names=("car", "sky", "sea"), seed=1)
    joined = TextBank.cat([make(), other])
    assert len(joined) == 6
    assert joined.class_index.tolist() == [0, 0, 1, 2, 2, 3, 3, 4, 5, 5]
    with pytest.raises(UserError, match="duplicates: bus, cat, dog"):
        TextBank.cat([make(), make()])


def test_class_mean_averages_rows_of_a_class():
    values = torch.tensor([[1.0, 3.0, 5.0, 2.0, 4.0]])
    assert make().class_mean(values).tolist() == [[2.0, 5.0, 3.0]]


def test_cosine_of_a_class_does_not_depend_on_the_others():
    bank, policy = make(), ScoringPolicy()
    v = torch.randn(4, 16)
    whole = bank.cosine(v, policy)
    for name in bank.names:
        alone = bank.select([name]).cosine(v, policy)
        assert torch.allclose(alone[:, 0], whole[:, bank.index_of(name)], atol=1e-6)


def test_ceiling_calibration_equals_the_masked_text_norm():
    bank = make(rows=(0, 1, 2))
    v = torch.randn(4, 16)
    calibrated = bank.cosine(v, ScoringPolicy(calibration="ceiling"))
    assert torch.allclose(calibrated, masked_cosine(v, bank.embeds, bank.masks, text_norm="masked"), atol=1e-5)


def test_names_are_checked_with_nearest_names():
    bank = make()
    with pytest.raises(UserError, match=r"'buss' \(nearest: bus"):
        bank.select(["buss"])
    with pytest.raises(UserError, match="seen"):
        bank.with_seen(["cow"])
    with pytest.raises(UserError, match="class names"):
        bank.index_of("cats")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ("a", "a", "b")}, "duplicates: a"),
        ({"masks": torch.ones(2, 16)}, "same shape"),
        ({"class_index": torch.tensor([0, 0, 0, 1, 1])}, "every class"),
        ({"texts": ("one",)}, "as many texts"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    bank = make()
    parts = {
        "names": bank.names,
        "embeds": bank.embeds,
        "masks": bank.masks,
        "texts": bank.texts,
        "class_index": bank.class_index,
        **change,
    }
    with pytest.raises(UserError, match=message):
        TextBank(**parts)


def test_load_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="No text bank"):
        TextBank.load(tmp_path / "absent.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"1234")
    with pytest.raises(UserError, match="not a readable safetensors"):
        TextBank.load(tmp_path / "broken.safetensors")
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not a text bank"):
        TextBank.load(tmp_path / "other.safetensors")


def test_a_hundred_thousand_rows(tmp_path):
    k = 100_000
    long = " a text of many words" * 50
    bank = TextBank(
        tuple(f"name {i}" for i in range(k)),
        torch.randn(k, 32),
        torch.ones(k, 32),
        texts=[f"{i}{long}" for i in range(k)],
    )
    start = time.perf_counter()
    bank.save(tmp_path / "large.safetensors")
    loaded = TextBank.load(tmp_path / "large.safetensors")
    part = loaded.select([f"name {i}" for i in range(0, k, 1000)])
    assert len(part) == 100
    assert torch.equal(part.embeds, bank.embeds[::1000])
    assert loaded.texts[99_999] == bank.texts[99_999]
    assert time.perf_counter() - start < 120  # linear in K: a quadratic step would take hours


@pytest.mark.parametrize(
    "words",
    [
        b"null",
        b"[]",
        b"{",
        b"\xff",
        b'{"names": ["a"]}',
        b'{"names": null, "texts": [], "provenance": {}, "mask_dtype": "float32"}',
        b'{"names": ["a", "b"], "texts": ["a", "b"], "provenance": {}, "mask_dtype": "nothing"}',
        b'{"names": ["a"], "texts": ["a"], "provenance": {}, "mask_dtype": "float32"}',
    ],
)
def test_damaged_banks_are_one_error(tmp_path, words):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    embeds = torch.nn.functional.normalize(torch.ones(2, 4), dim=-1)
    TextBank(names=("a", "b"), embeds=embeds, masks=torch.ones(2, 4), texts=("a", "b")).save(
        tmp_path / "bank.safetensors"
    )
    assert TextBank.load(tmp_path / "bank.safetensors").names == ("a", "b")
    tensors = load_file(tmp_path / "bank.safetensors")
    with safe_open(tmp_path / "bank.safetensors", framework="pt") as handle:
        header = handle.metadata()
    for change in ({"words": torch.frombuffer(bytearray(words), dtype=torch.uint8)}, {"masks": None}):
        broken = {k: v for k, v in {**tensors, **change}.items() if v is not None}
        save_file(broken, tmp_path / "broken.safetensors", metadata=header)
        with pytest.raises(UserError, match="corrupt text bank"):
            TextBank.load(tmp_path / "broken.safetensors")
