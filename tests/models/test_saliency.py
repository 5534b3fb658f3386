"""Learned weights of the cells of a ViT's dense map: equal at initialisation, closed forms, gradients, files."""

from __future__ import annotations

import pytest
import torch
from mmengine.structures import BaseDataElement
from torch.nn import functional

from smartclip_det.core.errors import UserError
from smartclip_det.models.alignment import SmartCLIPAlignment
from smartclip_det.models.regions import pool_masks, pool_regions
from smartclip_det.models.towers import SmartCLIP
from smartclip_det.models.towers.source import load_towers
from smartclip_det.models.towers.vision_transformer import SALIENCY_LIMIT

TINY = {"arch": "SmartCLIP-tiny", "seed": 3}
TEXTS = ["a red heart", "a blue star", "two circles"]


def images(count=2, seed=0):
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def taught(towers, scale=0.1):
    """As after training: weights that differ between cells."""
    with torch.no_grad():
        towers.image_tower.saliency.normal_(0, scale, generator=torch.Generator().manual_seed(1))
    return towers


@torch.no_grad()
def weights_by_hand(towers, pixels, mode="value"):
    """``[B, h, w]`` exp(saliency) of the states after the final norm."""
    caught = []
    handle = towers.image_tower.ln_post.register_forward_hook(lambda module, given, out: caught.append(out))
    towers.encode_dense(pixels, mode)
    handle.remove()
    (states,) = caught
    return torch.einsum("bnw,w->bn", states, towers.image_tower.saliency[:, 0]).exp().unflatten(1, (8, 8))


def test_at_first_nothing_changes():
    plain, weighted = load_towers(TINY), load_towers({**TINY, "saliency": True})
    assert weighted.config == plain.config.with_(saliency=True)
    for mode in plain.dense_modes:
        assert torch.equal(weighted.encode_dense(images(), mode), plain.encode_dense(images(), mode))
    assert torch.equal(weighted.encode_image(images()), plain.encode_image(images()))
    assert torch.equal(weighted.encode_text(TEXTS).masks, plain.encode_text(TEXTS).masks)


@pytest.mark.parametrize("mode", ["value", "vanilla", "clearclip"])
def test_a_region_points_where_its_weighted_mean_points(mode):
    plain, weighted = load_towers(TINY), taught(load_towers({**TINY, "saliency": True}))
    value = plain.encode_dense(images(), mode).detach()
    weight = weights_by_hand(weighted, images(), mode)
    assert weight.std() > 0.1
    dense = weighted.encode_dense(images(), mode).detach()
    assert torch.allclose(dense, value * weight[:, None], rtol=1e-4, atol=1e-5)
    # Two by two whole cells, whose centres are RoIAlign's samples; and the same cells as a mask.
    (vector,) = pool_regions(dense, torch.tensor([[1.0, 8, 16, 24, 32]]), 8)
    inside = torch.zeros(1, 64, 64)
    inside[:, 16:32, 8:24] = 1
    (masked,) = pool_masks(dense[1], inside)
    v, w = value[1, :, 2:4, 1:3], weight[1, 2:4, 1:3]
    expected = (v * w).sum(dim=(1, 2)) / w.sum()
    for found in (vector, masked):
        assert functional.cosine_similarity(found, expected, dim=0) > 1 - 1e-5
        assert functional.cosine_similarity(found, v.mean(dim=(1, 2)), dim=0) < 1 - 1e-4
    # The class token still gives the image vector.
    assert torch.equal(weighted.encode_image(images()), plain.encode_image(images()))


def test_saliencies_are_cut_before_they_overflow():
    wild = taught(load_towers({**TINY, "saliency": True}), 1e6)
    dense = wild.encode_dense(images())
    assert torch.isfinite(dense).all()
    ratio = dense.norm(dim=1) / load_towers(TINY).encode_dense(images()).norm(dim=1)
    assert ratio.log().abs().max().item() == pytest.approx(SALIENCY_LIMIT, rel=1e-4)


def sample(text):
    facts = {
        "drawn_captions": [text],
        "region_boxes": [[4.0, 4, 40, 40], [20.0, 8, 60, 60]],
        "region_texts": ["a heart", "a star"],
    }
    return BaseDataElement(metainfo=facts)


TERMS = [{"dense_weight": 1.0}, {"distillation": {"images": 3}}, {"region_contrast": {"images": 3}}]


@pytest.mark.parametrize("term", TERMS, ids=lambda t: next(iter(t)))
def test_every_dense_term_teaches_it(term):
    model = SmartCLIPAlignment({**TINY, "saliency": True}, **term)
    losses = model(images(3), [sample(t) for t in TEXTS], mode="loss")
    sum(v for k, v in losses.items() if k.startswith("loss")).backward()
    assert model.towers.image_tower.saliency.grad.abs().max() > 0


def test_the_dense_term_is_the_loss_of_the_weighted_mean():
    model = SmartCLIPAlignment({**TINY, "saliency": True}, dense_weight=0.5)
    taught(model.towers)
    losses = model(images(3), [sample(t) for t in TEXTS], mode="loss")
    value, weight = load_towers(TINY).encode_dense(images(3)), weights_by_hand(model.towers, images(3))
    found = model.towers.forward_text(model.towers.tokenize(TEXTS))
    losses = {k: v.item() for k, v in losses.items()}
    for pooled, same in ((value * weight[:, None], True), (value, False)):
        own = model.loss(pooled.mean(dim=(2, 3)), found.embeds, found.mask_logits, model.towers.logit_scale)
        assert (losses["loss_sidm_dense"] == pytest.approx(0.5 * own["loss_sidm"].item(), rel=1e-4)) == same


def test_without_a_dense_term_it_is_not_trained(tmp_path):
    with pytest.raises(UserError, match="dense_weight, distillation or region_contrast"):
        SmartCLIPAlignment({**TINY, "saliency": True})
    path = taught(load_towers({**TINY, "saliency": True})).save(tmp_path / "t.safetensors")
    model = SmartCLIPAlignment({"checkpoint": str(path)})
    assert not model.towers.image_tower.saliency.requires_grad
    low_rank = SmartCLIPAlignment({"checkpoint": str(path)}, dense_weight=1.0, low_rank={"rank": 2})
    assert low_rank.towers.image_tower.saliency.requires_grad
    assert not low_rank.towers.image_tower.proj.requires_grad
    tower = model.towers.image_tower.requires_grad_(True)
    tower.freeze_unused((0,))
    assert not tower.saliency.requires_grad


@pytest.mark.parametrize(("name", "layout"), [("t.safetensors", "openai"), ("t.pth", "native")])
def test_files_carry_it(tmp_path, name, layout):
    towers = taught(load_towers({**TINY, "saliency": True}))
    path = towers.save(tmp_path / name, layout=layout)
    again = SmartCLIP.from_checkpoint(path)
    assert again.config == towers.config
    assert again.checkpoint_hash == towers.checkpoint_hash
    assert torch.equal(again.encode_dense(images()), towers.encode_dense(images()))
    # Both poolings from one checkpoint.
    plain = load_towers({"checkpoint": str(path), "saliency": False})
    assert torch.equal(plain.encode_dense(images()), load_towers(TINY).encode_dense(images()))
    assert plain.checkpoint_hash == load_towers(TINY).checkpoint_hash


def test_a_checkpoint_gets_it_beside_a_new_mask_network(tmp_path):
    clip = SmartCLIP.from_arch("CLIP-toy-ViT", seed=3)
    path = str(clip.save(tmp_path / "clip.safetensors"))
    joined = load_towers({"checkpoint": path, "mask_layers": 1, "seed": 5, "saliency": True, "mask_bias": 4.0})
    masks_alone = load_towers({"checkpoint": path, "mask_layers": 1, "seed": 5, "mask_bias": 4.0})
    assert joined.config == masks_alone.config.with_(saliency=True)
    assert torch.equal(joined.encode_dense(images()), clip.encode_dense(images()))
    assert torch.equal(joined.encode_text(TEXTS).mask_probs, masks_alone.encode_text(TEXTS).mask_probs)
    assert joined.encode_text(TEXTS).masks.mean() > 0.9


def test_what_has_no_place_for_it_says_so(tmp_path):
    towers = load_towers({"arch": "CLIP-toy-ViT", "saliency": True})
    for layout in ("huggingface", "open_clip"):
        with pytest.raises(UserError, match="cannot store weights of cells"):
            towers.save(tmp_path / layout, layout=layout)
        assert not (tmp_path / layout).exists()
    with pytest.raises(UserError, match="a 'local' tower always has weights of cells"):
        load_towers({"arch": "SmartCLIP-toy", "saliency": True})
    with pytest.raises(UserError, match="saliency must be true or false"):
        load_towers({**TINY, "saliency": 1})
    with pytest.raises(UserError, match="Unknown towers key 'salience'. Nearest: saliency"):
        load_towers({**TINY, "salience": True})
