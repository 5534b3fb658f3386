"""The benchmark of the training-free predictor, on small models: it measures what it reports."""

from __future__ import annotations

import pytest
import torch

from smartclip_det.models.boxes import TorchvisionBoxes
from smartclip_det.studies.benchmarks import peers, predict


@pytest.fixture(scope="module")
def small():
    return predict.build(
        "SmartCLIP-tiny", 64, "cpu", TorchvisionBoxes(predict.SMALL, weights=None, max_boxes=9, size=64)
    )


def test_every_stage_is_measured_for_every_number_of_names(small, tmp_path, capsys):
    path = tmp_path / "a.jpg"
    predict.generated_picture(96).save(path)
    found = predict.by_names(predict.OnePicture(small, path), [1, 50], 1, 64)
    for k in ("1", "50"):
        stages = found[k]["stages"]
        assert list(stages) == list(predict.STAGES)
        assert all(s["seconds"] > 0 for s in stages.values())
        assert found[k]["whole"] == pytest.approx(sum(s["seconds"] for s in stages.values()))
    # Stages that do not depend on names are measured once.
    assert all(found["1"]["stages"][s] == found["50"]["stages"][s] for s in predict.SAME)
    assert found["growth"] == pytest.approx(found["50"]["whole"] / found["1"]["whole"] - 1)
    assert "from 1 to 50 names the total grows by" in capsys.readouterr().out


def test_batches_answer_as_single_pictures_and_memory_is_watched(small, tmp_path):
    found = predict.batches(small, tmp_path, 96, count=2)
    assert found["largest_difference_of_scores"] < 1e-4
    assert set(found) == {"batches of 1", "batches of 2", "largest_difference_of_scores"}
    predict.generated_picture(96).save(tmp_path / "a.jpg")
    held = predict.memory(small, tmp_path / "a.jpg", 12, every=3)
    assert len(held["resident_mib"]) == 4
    assert min(held["resident_mib"]) > 50


def test_owlv2_takes_turns_with_each_variant_for_every_number_of_names(monkeypatch, capsys):
    calls = []

    def ours(k):
        return {"ours": lambda: calls.append(("ours", k))}

    def peer(size, k, device):
        return None if k == 5 else lambda image: calls.append((tuple(image.shape), size, k, device))

    monkeypatch.setattr(peers, "owlv2", peer)
    found = peers.against_owlv2("towers", ours, torch.zeros(1, 3, 8, 8), [2, 5], 1)
    other = "OWLv2-B/16, cached classes"
    assert {k: list(rows) for k, rows in found.items()} == {"2": ["ours", other], "5": ["ours"]}
    # One round to warm up, one that is timed.
    assert calls == [("ours", 2), ((1, 3, 8, 8), 8, 2, "cpu")] * 2 + [("ours", 5)] * 2
    printed = capsys.readouterr().out
    assert "towers and OWLv2, 8 px, 2 names, cpu" in printed
    assert "OWLv2: transformers is not installed, skipped" in printed


def test_both_detectors_are_compared_with_owlv2_by_their_own_answers(small, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "owlv2", lambda size, k, device: lambda image: image.sum())
    path = tmp_path / "a.jpg"
    predict.generated_picture(96).save(path)
    found = predict.against_owlv2(small, path, 64, [2, 3], 1)
    assert list(found) == ["2", "3"]
    assert all(list(rows) == ["ours", "ours, boxes known", "OWLv2-B/16, cached classes"] for rows in found.values())
