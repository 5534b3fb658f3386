"""SigLIP and EVA02 towers of open_clip with random weights, against open_clip and against identity attention."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.models.regions import RegionEncoder
from smartclip_det.models.towers.open_clip_towers import OpenClipEncoder
from smartclip_det.models.towers.source import load_encoder
from smartclip_det.models.vocabulary import build_bank
from tests.processes import run_process


def letters(texts):
    """A letter tokenizer, because SigLIP's own must be downloaded."""
    rows = [([ord(c) % 30000 + 2 for c in t] + [1] * 64)[:64] for t in texts]
    return torch.tensor(rows)


@pytest.fixture(scope="module")
def eva():
    return OpenClipEncoder("EVA02-B-16")


@pytest.fixture(scope="module")
def siglip():
    return OpenClipEncoder("ViT-B-16-SigLIP", image_size=96, tokenizer=letters)


def test_vectors_are_open_clips_own(eva, siglip):
    for encoder in (eva, siglip):
        side = encoder.config.image_size
        images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.equal(encoder.encode_image(images), encoder.model.encode_image(images))
    assert (eva.config.image_size, eva.config.embed_dim) == (224, 512)
    assert (siglip.config.image_size, siglip.config.embed_dim) == (96, 768)
    assert siglip.image_statistics() == ((0.5,) * 3, (0.5,) * 3)
    assert eva.image_statistics()[0] == pytest.approx((0.48145466, 0.4578275, 0.40821073))


def test_vanilla_dense_features_of_eva_are_its_projected_tokens(eva):
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    trunk = eva.model.visual.trunk
    dense = eva.encode_dense(images, "vanilla")
    assert dense.shape == (1, 512, 14, 14)
    with torch.no_grad():
        tokens = trunk.head(trunk.forward_features(images))[0, 1:]
    assert (dense[0].flatten(1).t() - tokens).abs().max() < 1e-4 * tokens.abs().max()


def test_value_dense_features_leave_the_last_attention_out(eva):
    """By hand: value projection, inner norm, output projection, and the block's residual and MLP."""
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    trunk = eva.model.visual.trunk
    with torch.no_grad():
        x, rope = trunk._pos_embed(trunk.patch_embed(images))
        for block in trunk.blocks[:-1]:
            x = block(x, rope=rope)
        last = trunk.blocks[-1]
        x = x + last.attn.proj(last.attn.norm(last.attn.v_proj(last.norm1(x))))
        x = x + last.mlp(last.norm2(x))
        expected = trunk.head(trunk.norm(x))[0, 1:]
    dense = eva.encode_dense(images)
    scale = expected.abs().max()
    assert (dense[0].flatten(1).t() - expected).abs().max() < 1e-4 * scale
    assert (dense - eva.encode_dense(images, "vanilla")).abs().max() > 1e-2 * scale
    assert not trunk.blocks[-1]._forward_pre_hooks


def test_siglip_pools_each_token_alone(siglip):
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    trunk = siglip.model.visual.trunk
    with torch.no_grad():
        tokens = trunk.forward_features(images)
        seventh = trunk.attn_pool(tokens[:, 7:8])
    dense = siglip.encode_dense(images, "vanilla")
    assert dense.shape == (1, 768, 6, 6)
    assert (dense[0, :, 1, 1] - seventh[0]).abs().max() < 1e-4 * seventh.abs().max()


def test_banks_and_region_vectors(siglip):
    bank = build_bank(siglip, ["cat", "dog"], progress=False)
    assert torch.equal(bank.masks, torch.ones(2, 768))
    assert bank.provenance["mask_pad"] == "none"
    image = Image.new("RGB", (120, 80), (200, 30, 30))
    encoder = RegionEncoder(siglip)
    for view in ("crop", "dense"):
        assert encoder.vectors(image, [[0, 0, 60, 60], [10, 10, 100, 70]], view).shape == (2, 768)
    with pytest.raises(UserError, match="vanilla"):
        RegionEncoder(siglip, dense_mode="qq_kk")


def test_what_cannot_be_used_is_told(siglip):
    with pytest.raises(UserError, match="EVA02-B-16"):
        load_encoder({"open_clip": "EVA2-B-16"})
    with pytest.raises(UserError, match="not a timm transformer"):
        OpenClipEncoder("ViT-B-32")
    with pytest.raises(UserError, match="No checkpoint at"):
        OpenClipEncoder("EVA02-B-16", "absent.pt")
    with pytest.raises(UserError, match="built for 96 x 96"):
        siglip.encode_dense(torch.zeros(1, 3, 128, 128))
    with pytest.raises(UserError, match="tokenizer of ViT-B-16-SigLIP is not available"):
        OpenClipEncoder("ViT-B-16-SigLIP", image_size=32, tokenizer="/nowhere")


def test_the_probe_takes_them(shared, repo, tmp_path):
    root = shared / "coco_mini_train"
    data = json.loads((root / "instances_train2017.json").read_text())
    data["images"] = data["images"][:2]
    kept = {i["id"] for i in data["images"]}
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in kept]
    (tmp_path / "ann.json").write_text(json.dumps(data))
    done = run_process(
        "tools/analysis/region_probe.py",
        "--open-clip",
        "EVA02-B-16",
        "--image-size",
        "64",
        "--ann",
        tmp_path / "ann.json",
        "--images",
        root / "images",
        "--mask-modes",
        "off",
        "--out",
        tmp_path / "probe.json",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "probe.json").read_text())["metrics"]["all"]
    assert set(found) == {"crop", "dense_value"}
