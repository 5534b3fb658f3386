"""Batches of alignment samples: the same losses as from a list of samples, and little work on the host."""

from __future__ import annotations

import pickle

import pytest
import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.structures import BaseDataElement
from torch.utils.data import DataLoader

from smartclip_det.datasets.caption_batch import SampleColumns, caption_batch
from smartclip_det.engine.finite_guard import sample_ids
from smartclip_det.models.alignment import SmartCLIPAlignment
from smartclip_det.models.towers.text_batch import describe_texts, pad_texts


def rows(count=6, sets=2):
    for n in range(count):
        texts = [[49406, *range(320 + s, 323 + s + n % 4), 49407] for s in range(sets)]
        facts = {"img_id": f"id {n}", "img_path": f"{n}.jpg", "drawn_captions": ["a"] * sets, "drawn_tokens": texts}
        if n == 2:
            facts |= {"replaced": "broken", "texts_cut": 1}
        pixels = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
        yield {"inputs": pixels, "data_samples": BaseDataElement(metainfo=facts)}


@pytest.mark.parametrize("options", [{}, {"text_chunks": 3}, {"micro_batch": 4}])
@pytest.mark.parametrize("pad", ["include", "ignore"])
def test_losses_and_gradients_are_those_of_a_list_of_samples(options, pad):
    given = list(rows())
    model = SmartCLIPAlignment(
        {"arch": "SmartCLIP-tiny", "seed": 0, "mask_pad": pad}, loss={"mask_mode": "soft"}, **options
    )
    found = []
    for batch in (
        caption_batch(given),
        {"inputs": torch.stack([g["inputs"] for g in given]), "data_samples": [g["data_samples"] for g in given]},
    ):
        model.zero_grad()
        losses = model(**model.data_preprocessor(batch, True), mode="loss")
        sum(v for k, v in losses.items() if "loss" in k).backward()
        grads = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
        found.append((losses, {k: g.clone() for k, g in grads.items()}))
    for a, b in zip(*found, strict=True):
        assert a.keys() == b.keys()
        for k in a:
            torch.testing.assert_close(a[k], b[k], rtol=1e-4, atol=1e-6)


def test_texts_are_set_by_set_and_sorted_on_the_host():
    batch = caption_batch(list(rows(3)))["texts"]
    assert batch["lengths"] == (5, 6, 7, 5, 6, 7)
    assert batch["tokens"].shape == (6, 7)
    assert batch["tokens"][0].tolist() == [49406, 320, 321, 322, 49407, 0, 0]
    assert batch["tokens"][3].tolist() == [49406, 321, 322, 323, 49407, 0, 0]
    assert batch["order"].tolist() == [0, 3, 1, 4, 2, 5]
    assert batch["order"][batch["back"]].tolist() == list(range(6))
    again = describe_texts(torch.nn.functional.pad(batch["tokens"], (0, 9)))
    assert all(torch.equal(again[k], batch[k]) if k != "lengths" else again[k] == batch[k] for k in batch)
    assert pad_texts([[1, 2]])["tokens"].tolist() == [[1, 2]]


def test_samples_in_columns_are_read_like_a_list():
    batch = caption_batch(list(rows(4)))
    samples = pickle.loads(pickle.dumps(batch["data_samples"]))
    assert len(samples) == 4
    assert [s.img_path for s in samples] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert [s.get("replaced") for s in samples] == [None, None, "broken", None]
    assert [s.get("texts_cut", 0) for s in samples] == [0, 0, 1, 0]
    assert "replaced" in samples[-2]
    assert "drawn_tokens" not in samples[0]
    assert sample_ids(batch) == ["id 0", "id 1", "id 2", "id 3"]
    with pytest.raises(AttributeError, match="no 'absent'; known: drawn_captions, img_id"):
        _ = samples[0].absent
    with pytest.raises(IndexError):
        _ = samples[4]
    # MMEngine passes it on unchanged, but would copy each sample of a list.
    assert BaseDataPreprocessor()(batch, True)["data_samples"] is batch["data_samples"]
    assert isinstance(batch["data_samples"], SampleColumns)


def test_workers_and_the_process_itself_give_the_same_batch():
    data = list(rows(4))
    (here,), (there,) = (list(DataLoader(data, 4, num_workers=w, collate_fn=caption_batch)) for w in (0, 1))
    assert torch.equal(here["inputs"], there["inputs"])
    assert torch.equal(here["texts"]["tokens"], there["texts"]["tokens"])
    assert there["inputs"].is_contiguous()
