from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from smartclip_det.core.errors import UserError
from smartclip_det.models.template_sets import class_prompts
from smartclip_det.models.towers import SmartCLIP
from smartclip_det.models.vocabulary import TextCache, build_bank, read_vocabulary

NAMES = ["cat", "traffic light", "dog"]


@pytest.fixture(scope="module")
def encoder():
    return SmartCLIP.from_arch("SmartCLIP-tiny")


@pytest.mark.parametrize("order", ["per_template", "average_state", "average_mask", "union_mask"])
def test_orders_by_hand(encoder, order):
    sets = ["a photo of a {}.", "many {} in a big room.", "the {}"]
    bank = build_bank(encoder, NAMES, templates=sets, template_order=order, progress=False)
    for c, prompts in enumerate(class_prompts(NAMES, sets)):
        rows = encoder.encode_text(prompts)
        if order == "per_template":
            mine = bank.class_index == c
            assert torch.allclose(bank.embeds[mine], rows.embeds, atol=1e-6)
            assert torch.equal(bank.masks[mine], rows.masks)
            continue
        assert torch.allclose(bank.embeds[c], functional.normalize(rows.embeds.mean(0), dim=0), atol=1e-6)
        if order == "union_mask":
            assert torch.equal(bank.masks[c], rows.masks.amax(0))
        if order == "average_mask":
            assert torch.equal(bank.masks[c], (rows.masks.mean(0) >= 0.5).float())
        if order == "average_state":
            tokens = encoder.tokenize(prompts)
            states = encoder.forward_text(tokens).states
            length = tokens.argmax(-1) + 1
            mean = torch.stack([states[length > i, i].mean(0) for i in range(int(length.max()))])
            logits = encoder.mask_network(mean[None], torch.ones(1, len(mean), dtype=torch.bool))
            assert torch.equal(bank.masks[c], (logits[0] >= 0).float())


def test_one_template_makes_all_orders_agree(encoder):
    banks = [
        build_bank(encoder, NAMES, template_order=o, progress=False)
        for o in ("per_template", "average_state", "average_mask", "union_mask")
    ]
    for bank in banks[1:]:
        assert torch.allclose(bank.embeds, banks[0].embeds, atol=1e-6)
        assert torch.equal(bank.masks, banks[0].masks)
    assert banks[0].background is not None


def test_cache_is_keyed_by_content_and_saves_the_towers_work(encoder, tmp_path, monkeypatch):
    first = build_bank(encoder, NAMES, cache_dir=tmp_path, progress=False)
    calls = []
    original = SmartCLIP.forward_text
    monkeypatch.setattr(
        SmartCLIP, "forward_text", lambda self, tokens: calls.append(len(tokens)) or original(self, tokens)
    )
    again = build_bank(encoder, NAMES[::-1], cache_dir=tmp_path, progress=False)
    assert calls == []
    assert torch.equal(again.embeds.flip(0), first.embeds)
    build_bank(encoder, [*NAMES, "bus"], cache_dir=tmp_path, progress=False)
    assert calls == [1]
    build_bank(encoder, NAMES, templates="none", cache_dir=tmp_path, progress=False)
    assert calls == [1, 4]
    gelu = SmartCLIP(encoder.config.with_(activation="gelu")).eval()
    gelu.load_state_dict(encoder.state_dict())
    assert gelu.checkpoint_hash == encoder.checkpoint_hash
    assert not torch.equal(build_bank(gelu, NAMES, cache_dir=tmp_path, progress=False).embeds, first.embeds)
    other = SmartCLIP.from_arch("SmartCLIP-tiny", seed=5)
    changed = build_bank(other, NAMES, cache_dir=tmp_path, progress=False)
    assert not torch.equal(changed.embeds, first.embeds)


def test_a_run_that_dies_keeps_its_finished_batches(encoder, tmp_path, monkeypatch):
    original = SmartCLIP.forward_text
    calls = []

    def dies(self, tokens):
        calls.append(len(tokens))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, tokens)

    monkeypatch.setattr(SmartCLIP, "forward_text", dies)
    names = [f"thing {i}" for i in range(20)]
    with pytest.raises(KeyboardInterrupt):
        build_bank(encoder, names, cache_dir=tmp_path, batch_size=4, progress=False)
    build_bank(encoder, names, cache_dir=tmp_path, batch_size=4, progress=False)
    assert sum(calls[3:]) == 21 - 8  # 20 names and the background, less two finished batches


def test_synonyms_and_seen(encoder):
    bank = build_bank(
        encoder, NAMES, synonyms={"dog": ["puppy"]}, template_order="per_template", seen=["cat"], progress=False
    )
    assert bank.class_index.tolist() == [0, 1, 2, 2]
    assert bank.seen.tolist() == [True, False, False]
    with pytest.raises(UserError, match="not in the vocabulary: cow"):
        build_bank(encoder, NAMES, synonyms={"cow": ["calf"]})


def test_bad_vocabularies(encoder, tmp_path):
    with pytest.raises(UserError, match="repeats names: cat"):
        build_bank(encoder, ["cat", "cat"])
    with pytest.raises(UserError, match="must be a list of strings"):
        build_bank(encoder, "dog")
    with pytest.raises(UserError, match="synonyms of 'dog' must be a list"):
        build_bank(encoder, ["dog"], synonyms={"dog": "puppy"})
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfcat\n")
    assert read_vocabulary(tmp_path / "bom.txt") == ["cat"]
    (tmp_path / "latin.txt").write_bytes("caf\xe9\n".encode("latin1"))
    with pytest.raises(UserError, match="not readable UTF-8"):
        read_vocabulary(tmp_path / "latin.txt")
    facts = {"checkpoint_hash": "a" * 16}
    (tmp_path / "texts_aaaaaaaa.sqlite").write_text("no database at all, but long enough to be looked at" * 40)
    with pytest.raises(UserError, match="cannot be used"):
        TextCache(tmp_path, facts)
    with pytest.raises(UserError, match="over the limit"):
        build_bank(encoder, ["very " * 80 + "long"])
    with pytest.raises(UserError, match="No vocabulary file"):
        read_vocabulary(tmp_path / "v.txt")
    (tmp_path / "v.txt").write_text("red mug\n\nleft dog, sitting\n")
    assert read_vocabulary(tmp_path / "v.txt") == ["red mug", "left dog, sitting"]
    (tmp_path / "v.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="JSON list"):
        read_vocabulary(tmp_path / "v.json")
    (tmp_path / "e.txt").write_text("\n")
    with pytest.raises(UserError, match="contains no names"):
        read_vocabulary(tmp_path / "e.txt")


def test_the_cache_survives_two_writers(tmp_path):
    facts = {"checkpoint_hash": "0" * 16}
    one, two = TextCache(tmp_path, facts), TextCache(tmp_path, facts)
    one.put([("a",)], torch.ones(1, 2, 4))
    two.put([("b",)], torch.zeros(1, 2, 4))
    assert torch.equal(two.get([("a",)])[0], torch.ones(2, 4))
    assert one.get([("c",)])[0] is None
    one.close()
    two.close()


def test_published_embeddings_behave_as_published(shared):
    """Detic's stored vectors with our similarity: 78 of 79 COCO classes match their LVIS synset."""
    from smartclip_det.core.similarity import masked_cosine

    folder = shared / "text_embeddings"
    coco = torch.from_numpy(np.load(folder / "coco_clip_a+cname.npy").astype("float32"))
    lvis = torch.from_numpy(np.load(folder / "lvis_v1_clip_a+cname.npy").astype("float32"))
    nearest = masked_cosine(coco, lvis).argmax(1)
    categories = sorted(
        json.loads((shared / "category_metadata/lvis_v1_train_cat_info.json").read_text()), key=lambda c: c["id"]
    )
    synsets = json.loads((shared / "category_metadata/coco_to_synset.json").read_text())
    names = json.loads((shared / "category_metadata/mscoco_all_classes.json").read_text())
    hits = total = 0
    by_synset = {c["synset"]: i for i, c in enumerate(categories)}
    for i, name in enumerate(names):
        synset = synsets[name]["synset"]
        if synset in by_synset:
            total += 1
            hits += int(nearest[i] == by_synset[synset])
    assert (hits, total) == (78, 79)
