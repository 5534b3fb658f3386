"""The identifiability study: components by hand, and the claims of the theory with thresholds (arXiv 2507.22264)."""

from __future__ import annotations

import json

import pytest
import torch

from smartclip_det.studies.identifiability import Nature, World, kernel_r2, mean_of
from tests.tools.test_runs import run


def test_regression_finds_what_is_there_and_nothing_else():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(600, 2, generator=g)
    assert kernel_r2(x, torch.sin(x) + x**2) > 0.95
    assert kernel_r2(x, torch.randn(600, 2, generator=g)) < 0.05


def test_a_caption_depends_on_what_it_tells_alone():
    nature = Nature(World(style=0), 0)
    z = nature.latents(50)
    told = torch.tensor([[1.0, 0, 1, 0]]).expand(50, 4)
    changed = z.clone()
    changed[:, [1, 3]] += 1
    assert torch.equal(nature.texts(z, told), nature.texts(changed, told))
    assert not torch.equal(nature.texts(z, told), nature.texts(changed, torch.ones(50, 4)))
    assert not torch.equal(nature.images(z), nature.images(changed))


def test_the_mixing_can_be_undone():
    nature = Nature(World(), 0)
    x = torch.randn(20, nature.of_images.weights[0].shape[0])
    y = x @ nature.of_images.weights[0]
    assert torch.allclose(y @ nature.of_images.weights[0].t(), x, atol=1e-5)


def test_worlds_have_the_support_and_the_dependence_that_they_say():
    assert World(subsets="pairs").sets() == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert len(World().sets()) == 15
    z = Nature(World(correlation=0.7), 0).latents(20_000)
    assert torch.corrcoef(z[:, :2, 0].t())[0, 1].item() == pytest.approx(0.7, abs=0.02)
    assert z.var().item() == pytest.approx(1, abs=0.02)
    found = mean_of(
        [
            {
                "own_block_r2": v,
                "other_block_r2": 0.0,
                "jaccard": 1.0,
                "dimensions_on": 3.0,
                "partial": {"hard": v, "off": 0.0, "clip": 0.0},
            }
            for v in (0.4, 0.6)
        ]
    )
    assert found["own_block_r2"] == found["partial"]["hard"] == 0.5


@pytest.mark.slow
def test_masks_find_the_concepts_and_score_partial_captions_best(tmp_path):
    run("tools/analysis/identifiability.py", "--seeds", "1", "--out", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["own_block_r2"] > 0.95
    assert found["other_block_r2"] < 0.2
    assert found["jaccard"] >= 0.9
    assert found["partial"]["hard"] > found["partial"]["off"]
    assert found["partial"]["hard"] > found["partial"]["clip"]
    assert found["metrics"]["own_block_r2"] == found["own_block_r2"]
    assert (tmp_path / "found.png").is_file()
