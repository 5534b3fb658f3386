"""The objective study: scenes, captions and ground truth by hand, and a run of a few steps."""

from __future__ import annotations

import json

import pytest
import torch

from smartclip_det.cli.dispatch import main
from smartclip_det.core.errors import UserError
from smartclip_det.datasets.scene_captions import Speech
from smartclip_det.datasets.toy_world.shapes import COLOURS, SHAPES
from smartclip_det.studies import objective
from smartclip_det.studies.objective import (
    PARTS,
    RECIPES,
    Encoders,
    ObjectiveOptions,
    Things,
    compare,
    confusions,
    draw_captions,
    draw_scenes,
    held_out_pairs,
    is_true,
    train,
)

COUNTS = (0.2, 0.3, 0.5)
NOTHING = torch.zeros(0, dtype=torch.long)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def things(*rows):
    """Scenes or captions from words: ``[["heart red", "star"], ...]``."""
    most = max(map(len, rows))
    facts, there = torch.zeros(len(rows), most, sum(PARTS)), torch.zeros(len(rows), most, dtype=torch.bool)
    column = {w: n for n, w in enumerate([*SHAPES, *COLOURS])}
    for r, row in enumerate(rows):
        for o, words in enumerate(row):
            there[r, o] = True
            facts[r, o, [column[w] for w in words.split()]] = 1
    return Things(facts, there)


def test_scenes_have_the_counts_and_never_a_held_out_pair():
    without = held_out_pairs(36, 0)
    assert len(without.unique()) == 36
    scenes = draw_scenes(4000, COUNTS, generator(), without)
    share = torch.stack([(scenes.there.sum(dim=1) == n).float().mean() for n in (1, 2, 3)])
    assert torch.allclose(share, torch.tensor(COUNTS), atol=0.03)
    pairs = scenes.pairs()
    assert not pairs[:, without].any()
    assert pairs.any(dim=0).sum() == len(SHAPES) * len(COLOURS) - 36
    assert (scenes.facts.sum(dim=2) == 4).all()


def test_captions_are_true_of_their_own_picture_and_say_what_they_are_told_to():
    scenes = draw_scenes(600, COUNTS, generator(), NOTHING)
    captions = draw_captions(scenes, Speech(any_subset=1, colour=0.5, size=0, texture=1), generator(1))
    assert is_true(captions, scenes).diagonal().all()
    assert (captions.there & ~scenes.there).sum() == 0
    said = captions.facts[captions.there].split(PARTS, dim=1)
    assert (said[0].sum(dim=1) == 1).all()
    assert said[1].sum(dim=1).mean().item() == pytest.approx(0.5, abs=0.05)
    assert said[2].sum() == 0
    # The texture "plain" is never mentioned; of the other objects, 0.3 mention theirs.
    assert said[3][:, 0].sum() == 0
    assert said[3].sum(dim=1).mean().item() == pytest.approx(0.3, abs=0.05)
    few = draw_captions(scenes, Speech(any_subset=0), generator(1)).there.sum(dim=1)
    assert set(few.tolist()) == {1, 2}
    assert (few <= scenes.there.sum(dim=1)).all()


def test_truth_binds_a_colour_to_its_shape():
    scenes = things(["heart red", "star blue"], ["heart blue", "star red"], ["heart red"])
    captions = things(["heart red"], ["star red"], ["heart", "star"], ["heart", "heart"])
    assert is_true(captions, scenes).int().tolist() == [[1, 0, 1, 1], [0, 1, 1, 1], [1, 0, 0, 1]]


def test_confusions_are_told_apart():
    """The red heart scores above an unbound one, below a heart of another colour, and equal to another red object."""
    scenes = things(["heart red"], ["heart blue", "star red"], ["heart blue"], ["star red"])
    pair = list(SHAPES).index("heart") * len(COLOURS) + list(COLOURS).index("red")
    scores = torch.zeros(4, PARTS[0] * PARTS[1])
    plain = confusions(scores, scenes)
    assert plain == dict.fromkeys(objective.WRONG, 0.5)
    scores[:, pair] = torch.tensor([0.5, 0.2, 0.9, 0.5])
    found = confusions(scores, scenes)
    assert found["unbound"] > 0.5 > found["shape_only"]
    assert found["colour_only"] == 0.5
    scores[1, pair] = 0.9
    assert confusions(scores, scenes)["unbound"] < 0.5


def test_encoders_see_what_is_there_alone():
    encoders = Encoders(RECIPES["masks"])
    scenes = things(["heart red", "star blue"], ["heart red"])
    moved = Things(scenes.facts.clone(), scenes.there)
    moved.facts[1, 1, 3] = 1
    swapped = Things(scenes.facts[:1].flip(1), scenes.there[:1])
    with torch.no_grad():
        images, (texts, logits) = encoders.images(scenes), encoders.texts(scenes)
        assert torch.equal(encoders.images(moved), images)
        assert torch.equal(encoders.texts(moved)[1], logits)
        assert torch.allclose(encoders.images(swapped)[0], images[0], atol=1e-6)
        assert torch.allclose(encoders.texts(swapped)[0][0], texts[0], atol=1e-6)
        assert not torch.allclose(images[0], images[1], atol=1e-3)


def test_recipes_change_what_they_say(monkeypatch):
    task = ObjectiveOptions(steps=2, batch=16)
    models = {n: train(RECIPES[n], task, 0) for n in ("masks", "open", "rate-x3")}
    texts = things(["heart red"], ["star"])
    opened, plain = (models[n].texts(texts)[1].mean().item() for n in ("open", "masks"))
    assert opened == pytest.approx(plain + 2, abs=0.3)
    torch.manual_seed(0)
    start = Encoders(RECIPES["masks"]).state_dict()
    for name, factor in (("mask.0.weight", 3), ("text.weight", 1)):
        slow, fast = ((models[n].state_dict()[name] - start[name]).abs().mean() for n in ("masks", "rate-x3"))
        assert (fast / slow).item() == pytest.approx(factor, rel=0.1)

    seen = []

    class Watched(objective.AlignmentLoss):
        def forward(self, *given):
            seen.append(self.sparsity_weight)
            return super().forward(*given)

    monkeypatch.setattr(objective, "AlignmentLoss", Watched)
    train(RECIPES["open-ramp"], ObjectiveOptions(steps=8, batch=4), 0)
    assert seen[::2] == seen[1::2] == pytest.approx([0, 0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.1])


def test_the_command_writes_stamped_numbers_of_each_recipe(tmp_path, capsys):
    out = tmp_path / "objective.json"
    with pytest.raises(SystemExit) as ended:
        main(["study", "objective", "--seeds", "1", "--steps", "25", "--pictures", "600", "--out", str(out)])
    assert ended.value.code in (0, None)
    content = json.loads(out.read_text())
    assert content["protocol"]["name"] == "objective"
    assert content["protocol"]["recipes"]["masks"]["sparsity"] == 0.1
    assert set(content["metrics"]) == {"clip", "masks"}
    assert set(content["metrics"]["clip"]) == {"off", "auc"}
    masked = content["metrics"]["masks"]
    assert set(masked) == {"hard", "off", "random", "shuffled", "auc", "density", "never_on"}
    # After 25 steps shapes are recognised well above chance (0.1 of the images show one); a broken order would not be.
    assert content["metrics"]["clip"]["off"]["shape"] > 0.4
    assert content["by_seed"]["masks"][0]["hard"] == masked["hard"]
    assert "col+sh" in capsys.readouterr().out


def test_wrong_recipes_are_refused_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match="recipe.*rate-x3"):
        compare(ObjectiveOptions(recipes=("rate-3",), out=tmp_path / "x.json"))
    with pytest.raises(UserError, match="held-out"):
        compare(ObjectiveOptions(held_out=180, out=tmp_path / "x.json"))
