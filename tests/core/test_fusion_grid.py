from __future__ import annotations

import math

import pytest
import torch

from smartclip_det.core.errors import UserError
from smartclip_det.core.fusion import FUSIONS, fuse, fuse_named, owl_logits
from smartclip_det.core.grid import padded_size, resize_image_positions, stretch_text_positions
from smartclip_det.core.scoring_policy import ScoringPolicy

# One region, a base and a novel class, then background; expected values are computed by hand.
DET = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
VLM = torch.tensor([[0.2, 0.6, 0.2]], dtype=torch.float64)
BASE = torch.tensor([True, False])
OBJ = torch.tensor([0.25], dtype=torch.float64)


def mean(det, vlm, a):
    return det ** (1 - a) * vlm**a


def test_f_vit_row():
    out = fuse_named("f_vit", DET, VLM, BASE)
    expected = [mean(0.5, 0.2, 0.1), mean(0.3, 0.6, 0.8), mean(0.2, 0.2, 0.1)]
    assert out[0].tolist() == pytest.approx(expected, abs=1e-12)
    lvis = fuse_named("f_vit", DET, VLM, BASE, beta=0.4)
    assert lvis[0, 1].item() == pytest.approx(mean(0.3, 0.6, 0.4), abs=1e-12)


def test_f_vlm_and_dito_rows_keep_the_detector_background_and_renormalise():
    raw = [mean(0.5, 0.2, 0.35), mean(0.3, 0.6, 0.65), 0.2]
    expected = [r / sum(raw) for r in raw]
    assert fuse_named("f_vlm", DET, VLM, BASE)[0].tolist() == pytest.approx(expected, abs=1e-12)
    dito = [e * 0.25**3 for e in expected]
    assert fuse_named("dito", DET, VLM, BASE, obj=OBJ)[0].tolist() == pytest.approx(dito, abs=1e-12)


def test_vild_row_reverses_the_thirds_for_novel():
    out = fuse_named("vild", DET, VLM, BASE)[0]
    assert out[0].item() == pytest.approx(0.5 ** (2 / 3) * 0.2 ** (1 / 3), abs=1e-12)
    assert out[1].item() == pytest.approx(0.3 ** (1 / 3) * 0.6 ** (2 / 3), abs=1e-12)


@pytest.mark.parametrize("name", ["region_clip", "detic"])
def test_geometric_mean_with_the_proposal_score(name):
    out = fuse_named(name, DET, None, BASE, obj=OBJ)[0]
    assert out.tolist() == pytest.approx([math.sqrt(0.5 * 0.25), math.sqrt(0.3 * 0.25), math.sqrt(0.2 * 0.25)])


def test_cora_row_multiplies_objectness():
    assert fuse_named("cora", DET, None, BASE, obj=OBJ)[0].tolist() == pytest.approx([0.125, 0.075, 0.05])


def test_lami_rows_leave_base_alone_and_lift_novel_five_times():
    det = DET[:, :2]
    out = fuse_named("lami_detr", det, VLM[:, :2], BASE)[0]
    assert out.tolist() == pytest.approx([0.5, 5 * mean(0.3, 0.6, 0.4)], abs=1e-12)
    assert fuse_named("lami_detr_vg", det, VLM[:, :2], BASE)[0, 1].item() == pytest.approx(5 * mean(0.3, 0.6, 0.25))


def test_owl_row():
    scores = owl_logits(torch.tensor([[0.3, -0.2]]), torch.tensor([0.1]), torch.tensor([-1.0])).sigmoid()
    scale = math.exp(-1) - 1 + 1
    expected = [1 / (1 + math.exp(-(0.3 + 0.1) * scale)), 1 / (1 + math.exp(-(-0.2 + 0.1) * scale))]
    assert scores[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_none_is_the_detector_alone():
    assert torch.equal(fuse_named("none", DET, None, BASE), DET)


def test_every_preset_is_covered_here():
    assert set(FUSIONS) == {
        "none",
        "f_vlm",
        "dito",
        "f_vit",
        "vild",
        "region_clip",
        "detic",
        "cora",
        "lami_detr",
        "lami_detr_vg",
        "owl",
    }


def test_fusion_says_what_is_missing():
    with pytest.raises(UserError, match="needs dense scores"):
        fuse_named("f_vit", DET, None, BASE)
    with pytest.raises(UserError, match="needs objectness"):
        fuse_named("cora", DET, None, BASE)
    with pytest.raises(UserError, match="5 columns for 2 classes"):
        fuse(torch.rand(1, 5), None, BASE, 0, 0)


def test_stretch_follows_the_rule_by_hand():
    table = torch.zeros(23, 2)
    table[20:, 0] = torch.tensor([1.0, 3.0, 7.0])
    long = stretch_text_positions(table)
    assert long.shape == (20 + 4 * 3, 2)
    assert long[20:, 0].tolist() == [1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9, 10]
    assert stretch_text_positions(torch.randn(77, 8)).shape == (248, 8)
    with pytest.raises(UserError, match="needs more than"):
        stretch_text_positions(torch.zeros(21, 2))


def test_image_positions_keep_the_class_row_and_the_native_grid():
    table = torch.randn(1 + 49, 6)
    assert resize_image_positions(table, (7, 7)) is table
    out = resize_image_positions(table, (5, 9))
    assert out.shape == (46, 6)
    assert torch.equal(out[0], table[0])
    constant = torch.full((50, 3), 2.5)
    assert torch.allclose(resize_image_positions(constant, (13, 4)), torch.full((53, 3), 2.5), atol=1e-5)
    with pytest.raises(UserError, match="square grid"):
        resize_image_positions(torch.zeros(48, 3), (2, 2))


def test_padded_size():
    assert padded_size((224, 225), 16) == (224, 240)


class TestPolicy:
    def test_round_trip_and_defaults(self):
        policy = ScoringPolicy(fusion="f_vit", mask_mode="soft")
        assert ScoringPolicy.from_dict(policy.to_dict()) == policy
        assert policy.with_(alpha=0.2).alpha == 0.2
        assert policy.dense_mode == "soft"
        assert policy.with_(dense_mask_mode="off").dense_mode == "off"

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"mask_mode": "hrad"}, "Nearest: hard"),
            ({"temprature": 5}, "Nearest: temperature"),
            ({"temperature": 0}, "positive"),
            ({"temperature": float("nan")}, "must be a number"),
            ({"alpha": 1.5}, r"\[0, 1\]"),
            ({"fusion": "fvit"}, "f_vit"),
            ({"temperature": "50"}, "must be a number"),
            ({"background_weight": 5.0}, r"\(0, 1\]"),
            ({"sigmoid_bias": float("nan")}, "must be a number"),
            ({"mask_mode": "soft", "text_norm": "masked"}, "binary masks"),
            ({"dense_mask_mode": "soft", "calibration": "ceiling"}, "binary masks"),
            ({"background": "none"}, "zero"),
        ],
    )
    def test_bad_values_are_told(self, values, message):
        with pytest.raises(UserError, match=message):
            ScoringPolicy.from_dict(values)
