"""The presence study on a tiny world and random towers, and its plots."""

from __future__ import annotations

import json

import pytest
import torch

from smartclip_det.core.errors import UserError
from smartclip_det.datasets.toy_world import ToyWorld, WorldConfig, write_world
from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.models.regions import RegionEncoder
from smartclip_det.models.rescoring import class_scores
from smartclip_det.models.towers.source import load_encoder
from smartclip_det.models.vocabulary import build_bank
from smartclip_det.studies import presence as study
from smartclip_det.utils.images import open_rgb


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("presence")
    write_world(ToyWorld(WorldConfig(train=1, val=24, test=1, side=64)), root, progress=False, workers=1)
    (root / "absent.txt").write_text("\n".join(f"thing{n}" for n in range(30)))
    return root


def options(world, **changes):
    given = {
        "encoder": {"arch": "SmartCLIP-toy"},
        "ann": world / "annotations/instances_val.json",
        "images": world / "images/val",
        "absent": str(world / "absent.txt"),
        "sizes": (10, 30),
        "resamples": 10,
        "out": world / "presence.json",
        "device": "cpu",
    }
    return study.PresenceOptions(**{**given, **changes})


def test_everything_is_measured_and_written(world):
    results, path = study.measure_presence(
        options(
            world,
            expressions=world / "refs/finetune_toy_val.json",
            expression_images=world / "images",
            powers=(1.0,),
            text_norm="masked",
        )
    )
    told = json.loads(path.read_text())
    assert told["metrics"] == json.loads(json.dumps(results))
    assert told["protocol"]["name"] == "presence"
    assert told["counts"]["measured"] < told["counts"]["pictures"]
    rows = [
        f"{s}, presence 1{c}" for s in ("pooled", "cells") for c in ("", ", of another picture", ", of another name")
    ]
    assert list(results["detection"]["10"]) == list(results["detection"]["30"]) == ["presence 0", *rows]
    assert list(results["grounding"]) == ["presence 0", *(r for r in rows if "name" not in r)]
    for row in (*results["detection"]["30"].values(), *results["grounding"].values()):
        assert all(-1 <= v <= 1 for k, v in row.items() if k.startswith(("ap50", "n_acc", "auroc")))
        assert all(g["low"] <= g["high"] for g in row["gain"].values())
    assert results["detection"]["10"]["presence 0"]["gain"]["ap50_pooled"]["difference"] == 0


def test_a_picture_is_scored_as_elsewhere_in_the_house(world):
    o = options(world, limit=6)
    truth = load_ground_truth(o.ann)
    known = list(truth.categories.values())
    towers = load_encoder(o.encoder)
    encoder, bank = (
        RegionEncoder(towers),
        build_bank(towers, [*known, "thing1"], templates=[o.template], progress=False),
    )
    policy = study.ScoringPolicy(
        activation="sigmoid",
        background="zero",
        presence=0.5,
        presence_source="cells",
        presence_scale=4.0,
        dense_temperature=6.0,
        sigmoid_bias=-1.0,
    )
    seen = study.score_images(o, truth, encoder, bank, policy)
    picture = next(p for p in seen if len(p.boxes) > 1)
    image = open_rgb(world / f"images/val/{picture.image_id % 1_000_000:06d}.jpg")
    vectors = encoder.vectors(image, picture.boxes.tolist(), "dense")
    expected = class_scores([vectors], bank, policy, encoder.picture(image, "cells"))
    names = torch.arange(len(bank))
    found = study.detect([picture], [names], len(known), policy, [picture.presence["cells"]])
    assert found.scores == pytest.approx(expected.flatten().sort(descending=True).values[: len(found.scores)].numpy())
    assert found.foreign.sum() == (found.absent & found.foreign).sum()


def test_vocabularies_hold_what_is_there_then_known_then_foreign_names(world):
    truth = load_ground_truth(world / "annotations/instances_val.json")
    seen = [study.ScoredImage(i, *[torch.zeros(0)] * 3, {}, torch.zeros(0), torch.tensor([2, 5, 5])) for i in (1, 2)]
    first, second = (study.episode(p, 18, 48, 10, 0).tolist() for p in seen)
    assert len(set(first)) == 10
    assert {2, 5} <= set(first)
    assert sum(2 <= c < 18 or c < 2 for c in first) == 7
    assert [c for c in first if c >= 18] == [18, 19, 20]
    assert first != second
    assert first == study.episode(seen[0], 18, 48, 10, 0).tolist()
    halves = [study.calibrates(i["id"], 0) for i in truth.data["images"]]
    assert 4 < sum(halves) < 20


def test_foreign_names_share_no_word(world, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("starfish\nring-tailed lemur\nStars\nteapot\nviolin\ngolden heart")
    assert sorted(study.foreign_names(str(names), ["star", "ring", "heart"], 5, 0)) == ["starfish", "teapot", "violin"]
    with pytest.raises(UserError, match="need 4 foreign names, but only 3 of the 6"):
        study.foreign_names(str(names), ["star", "ring", "heart"], 7, 0)
    assert len(study.foreign_names(study.IMAGENET, ["star", "ring"], 900, 0)) == 900


def test_bad_options(world):
    with pytest.raises(UserError, match="must be at least 2"):
        options(world, sizes=(1, 10))
    with pytest.raises(UserError, match="above 0"):
        options(world, powers=(0.0,))
    with pytest.raises(UserError, match="Nearest: pooled"):
        options(world, sources=("pool",))
    with pytest.raises(UserError, match="calibration half"):
        study.calibrated([], 18, options(world), study.ScoringPolicy(), None)
