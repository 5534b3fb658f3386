"""The local image tower: closed forms of its pooling, taps, files, and rejected options."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

from smartclip_det.core.errors import UserError
from smartclip_det.models.alignment import SmartCLIPAlignment
from smartclip_det.models.regions import RegionEncoder, pool_regions
from smartclip_det.models.towers import SmartCLIP
from smartclip_det.models.towers.local_tower import SALIENCY_LIMIT, LocalTower
from smartclip_det.models.towers.low_rank import add_low_rank
from smartclip_det.models.towers.source import load_towers
from smartclip_det.models.towers.whitening import whiten_patch_embedding


def images(count=2, height=64, width=64, seed=0):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def towers():
    """With non-uniform saliencies, as after training, and updated batch norm statistics."""
    found = SmartCLIP.from_arch("SmartCLIP-toy", seed=1)
    tower = found.image_tower
    with torch.no_grad():
        tower.saliency.weight.mul_(60)
        tower.train()
        for seed in range(3):
            tower(images(8, seed=seed))
    return found.eval()


@torch.no_grad()
def values_and_weights(tower, pixels):
    last = tower.features(pixels, taps=(2,)).taps[0]
    value = torch.einsum("dc,bchw->bdhw", tower.value.weight[:, :, 0, 0], last) + tower.value.bias[:, None, None]
    saliency = torch.einsum("c,bchw->bhw", tower.saliency.weight[0, :, 0, 0], last) + tower.saliency.bias
    return value, saliency.exp()


def test_the_pooled_vector_is_the_weighted_mean_of_the_values(towers):
    value, weight = values_and_weights(towers.image_tower, images())
    assert weight.log().abs().max() < SALIENCY_LIMIT
    assert weight.std() > 0.1
    expected = (value * weight[:, None]).sum(dim=(2, 3)) / weight.sum(dim=(1, 2))[:, None]
    assert torch.allclose(towers.encode_image(images()), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(value.mean(dim=(2, 3)), expected, rtol=1e-2, atol=1e-3)


def test_a_region_of_the_dense_map_points_where_its_weighted_mean_points(towers):
    """Regions of two by two whole cells, whose centres are RoIAlign's sampling points."""
    value, weight = values_and_weights(towers.image_tower, images())
    dense = towers.encode_dense(images()).detach()
    assert torch.allclose(dense, value * weight[:, None], rtol=1e-4, atol=1e-5)
    rois = torch.tensor([[0.0, 8, 16, 24, 32], [1.0, 40, 0, 56, 16]])
    corners = [(0, slice(2, 4), slice(1, 3)), (1, slice(0, 2), slice(5, 7))]
    for vector, (b, rows, columns) in zip(pool_regions(dense, rois, 8), corners, strict=True):
        v, w = value[b, :, rows, columns], weight[b, rows, columns]
        expected = (v * w).sum(dim=(1, 2)) / w.sum()
        assert functional.cosine_similarity(vector, expected, dim=0) > 1 - 1e-6
        assert functional.cosine_similarity(v.mean(dim=(1, 2)), expected, dim=0) < 1 - 1e-5
    # The whole image as one region has the direction of the pooled vector.
    whole = dense.mean(dim=(2, 3))
    assert torch.allclose(
        functional.normalize(whole, dim=1), functional.normalize(towers.encode_image(images()), dim=1), atol=1e-5
    )


def test_saliencies_are_cut_before_they_overflow(towers):
    wild = copy.deepcopy(towers)
    with torch.no_grad():
        wild.image_tower.saliency.weight.mul_(1e6)
    dense = wild.encode_dense(images()).half()
    assert torch.isfinite(dense).all()
    assert torch.isfinite(wild.encode_image(images())).all()


def test_taps_have_the_strides_and_channels_that_are_told(towers):
    tower = towers.image_tower
    found = tower.features(images(1, 48, 80), taps=(0, 1, 2, -1)).taps
    told = zip((*tower.tap_strides, 8), (*tower.tap_channels, 80), found, strict=True)
    assert [tuple(t.shape) for t in found] == [(1, c, 48 // s, 80 // s) for s, c, _ in told]
    assert tower.tap_strides == (2, 4, 8)
    assert tower.tap_channels == (16, 48, 80)
    assert torch.equal(found[2], found[3])
    with pytest.raises(UserError, match=r"taps 0\.\.2; there is no tap 3"):
        tower.features(images(1), taps=(3,))


def test_it_has_the_size_and_the_field_of_view_that_were_measured(towers):
    tower = towers.image_tower
    assert 130_000 < sum(p.numel() for p in tower.parameters()) < 135_000
    pixels = images(1, 96, 96).requires_grad_()
    tower.features(pixels, taps=(2,)).taps[0][0, :, 6, 6].sum().backward()
    seen = pixels.grad[0].abs().sum(dim=0).sum(dim=1).nonzero()[:, 0]
    assert int(seen.max() - seen.min()) + 1 == 39


@pytest.mark.parametrize("size", [(64, 64), (8, 8), (72, 40), (61, 35)])
def test_any_size_works_and_odd_ones_are_padded(towers, size):
    dense = towers.encode_dense(images(1, *size))
    assert dense.shape == (1, 256, -(-size[0] // 8), -(-size[1] // 8))
    whole = functional.pad(images(1, *size), (0, -size[1] % 8, 0, -size[0] % 8))
    assert torch.equal(dense, towers.encode_dense(whole))


@pytest.mark.parametrize("name", ["towers.safetensors", "towers.pth"])
def test_a_file_is_read_without_being_told_the_architecture(towers, tmp_path, name):
    layout = "native" if name.endswith("pth") else "openai"
    again = SmartCLIP.from_checkpoint(towers.save(tmp_path / name, layout=layout))
    assert again.config == towers.config
    assert again.checkpoint_hash == towers.checkpoint_hash
    for pixels in (images(), images(1, 96, 40)):
        assert torch.equal(again.encode_image(pixels), towers.encode_image(pixels))
        assert torch.equal(again.encode_dense(pixels), towers.encode_dense(pixels))


def test_other_sizes_are_read_by_the_tensors(tmp_path):
    sizes = {"embed_dim": 48, "vision_width": 40, "vision_layers": 2, "image_size": 96}
    towers = load_towers({"arch": "SmartCLIP-toy", "sizes": sizes})
    again = SmartCLIP.from_checkpoint(towers.save(tmp_path / "t.safetensors"))
    assert again.config == towers.config
    assert {k: again.config.to_dict()[k] for k in sizes} == sizes
    with pytest.raises(UserError, match=r"Unknown tower key 'embed_dims'. Nearest: embed_dim"):
        load_towers({"arch": "SmartCLIP-toy", "sizes": {"embed_dims": 48}})
    with pytest.raises(UserError, match="multiple of 8"):
        load_towers({"arch": "SmartCLIP-toy", "sizes": {"vision_width": 81}})


def test_the_hash_sees_what_batch_norm_has_seen(towers):
    moved = copy.deepcopy(towers)
    assert moved.checkpoint_hash == towers.checkpoint_hash
    moved.image_tower.train()
    moved.encode_image(images(4))
    moved.eval()
    assert moved.checkpoint_hash != towers.checkpoint_hash


def test_what_is_of_transformers_is_refused_with_the_reason(towers, tmp_path):
    assert towers.dense_modes == ("vanilla", "value")
    assert torch.equal(towers.encode_dense(images(), "vanilla"), towers.encode_dense(images(), "value"))
    for mode in ("qq_kk", "clearclip"):
        with pytest.raises(UserError, match="no attention"):
            towers.encode_dense(images(), mode)
    with pytest.raises(UserError, match="dense_mode"):
        towers.encode_dense(images(), "valeu")
    with pytest.raises(UserError, match="dense_mode"):
        RegionEncoder(towers, dense_mode="qq_kk")
    with pytest.raises(UserError, match="window_size"):
        LocalTower(window_size=4)
    with pytest.raises(UserError, match="batch norm"):
        LocalTower(checkpointing=True)
    with pytest.raises(UserError, match="low_rank"):
        add_low_rank([copy.deepcopy(towers.image_tower)])
    with pytest.raises(UserError, match="WhitenPatchesHook"):
        whiten_patch_embedding(towers.image_tower, images())
    for layout in ("huggingface", "open_clip"):
        with pytest.raises(UserError, match="only supports vision transformers"):
            towers.save(tmp_path / layout, layout=layout, drop_masks=True)
    for options in ({"micro_batch": 4}, {"checkpointing": True}):
        with pytest.raises(UserError, match="batch norm"):
            SmartCLIPAlignment({"arch": "SmartCLIP-toy"}, **options)


def test_a_frozen_backbone_never_moves_its_batch_norm():
    from smartclip_det import register_detection  # noqa: F401
    from smartclip_det.models.backbones.smartclip_vit import SmartCLIPViT

    frozen = SmartCLIPViT({"arch": "SmartCLIP-toy"}, out_indices=(0, 1, 2)).train()
    before = {k: v.clone() for k, v in frozen.image_tower.state_dict().items()}
    assert [t.shape[1] for t in frozen(images())] == frozen.out_channels == [16, 48, 80]
    assert all(torch.equal(v, before[k]) for k, v in frozen.image_tower.state_dict().items())
    trained = SmartCLIPViT({"arch": "SmartCLIP-toy"}, out_indices=(0, 1), frozen=False).train()
    sum(t.sum() for t in trained(images())).backward()
    for name, p in trained.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name


@pytest.mark.parametrize("embed_dim", [64, 128])
def test_masks_start_open_where_asked_for(embed_dim):
    """With a projection (W and D differ) and without: every logit is shifted by the bias."""
    sizes = {"embed_dim": embed_dim}
    plain, opened = (
        load_towers({"arch": "SmartCLIP-toy", "sizes": sizes, **more}) for more in ({}, {"mask_bias": 3.0})
    )
    tokens = plain.tokenize(["a red heart", "a star and a small ring"])
    with torch.no_grad():
        before, after = plain.forward_text(tokens), opened.forward_text(tokens)
    assert torch.allclose(after.mask_logits, before.mask_logits + 3, atol=1e-4)
    assert torch.equal(after.embeds, before.embeds)
    with pytest.raises(UserError, match="mask_top_k"):
        load_towers({"arch": "SmartCLIP-toy", "sizes": {"mask_top_k": 8}, "mask_bias": 1.0})


def test_the_bias_is_for_new_mask_networks_alone(tmp_path):
    path = load_towers({"arch": "SmartCLIP-toy"}).save(tmp_path / "t.safetensors")
    again = load_towers({"checkpoint": str(path), "mask_bias": 3.0})
    assert again.checkpoint_hash == load_towers({"checkpoint": str(path)}).checkpoint_hash
