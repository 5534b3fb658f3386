"""The alignment model: loss, gradients, two processes, whitening, distillation."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
from mmengine.structures import BaseDataElement
from torch import multiprocessing
from torch.nn import functional

from smartclip_det.core.errors import UserError
from smartclip_det.models.alignment import SmartCLIPAlignment
from smartclip_det.models.alignment.distillation import RegionDistillation
from smartclip_det.models.losses import AlignmentLoss
from smartclip_det.models.towers import SmartCLIP
from smartclip_det.models.towers.whitening import whiten_patch_embedding

TEXTS = ["a red heart", "a blue star", "two circles", "a ring on a dim background", "an arrow", "a small drop"]


def samples(texts, count=1):
    return [BaseDataElement(metainfo={"drawn_captions": [t] * count}) for t in texts]


def images(count, seed=0):
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def build(**options):
    return SmartCLIPAlignment({"arch": "SmartCLIP-tiny", "seed": 0}, **options)


def total(losses):
    return sum(v for k, v in losses.items() if k.startswith("loss"))


def broadcast_loss(model, pixels, texts, modular=True):
    """The released form, pair by pair, written anew: [B, B, D] masked images, normalised, times texts."""
    towers = model.towers
    found = towers.forward_text(towers.tokenize(texts))
    v, t = towers.encode_image(pixels), functional.normalize(found.embeds, dim=-1)
    p = found.mask_logits.sigmoid()
    m = (p >= 0.5).float() + p - p.detach()
    masked = v[:, None, :] * (m[None, :, :] if modular else m[:, None, :])
    logits = 100 * (functional.normalize(masked, dim=-1) * t[None]).sum(-1)
    target = torch.arange(len(texts))
    pair = functional.cross_entropy(logits, target) + functional.cross_entropy(logits.t(), target)
    return 10 * pair + 2 * m.mean()


def same_gradients(found, model):
    """Within fp32 rounding of the largest gradient: some are zero but for rounding (a bias before a softmax)."""
    own = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == own.keys()
    largest = max(float(g.abs().max()) for g in own.values())
    for k, g in own.items():
        assert torch.allclose(found[k], g, rtol=1e-2, atol=3e-5 * largest), k


@pytest.mark.parametrize("modular", [True, False])
def test_loss_and_gradients_equal_the_broadcast_form(modular):
    model = build(loss={"modular": modular})
    ours = total(model(images(6), samples(TEXTS), mode="loss"))
    ours.backward()
    grads = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    theirs = broadcast_loss(model, images(6), TEXTS, modular)
    theirs.backward()
    assert torch.allclose(ours, theirs, rtol=1e-5)
    same_gradients(grads, model)


def test_several_captions_are_the_mean_of_their_losses():
    model = build()
    pairs = [BaseDataElement(metainfo={"drawn_captions": [a, b]}) for a, b in zip(TEXTS, TEXTS[::-1], strict=True)]
    both = total(model(images(6), pairs, mode="loss"))
    each = [total(model(images(6), samples(t), mode="loss")) for t in (TEXTS, TEXTS[::-1])]
    assert torch.allclose(both, sum(each) / 2, rtol=1e-5)


def test_the_dense_term_is_the_loss_of_the_mean_patch():
    model = build(dense_weight=0.5)
    losses = model(images(6), samples(TEXTS), mode="loss")
    towers = model.towers
    mean = towers.encode_dense(images(6)).flatten(2).mean(dim=2)
    texts = towers.forward_text(towers.tokenize(TEXTS))
    expected = model.loss(mean, texts.embeds, texts.mask_logits, towers.logit_scale)
    for k in ("loss_sidm", "loss_dism"):
        assert torch.allclose(losses[f"{k}_dense"], 0.5 * expected[k], rtol=1e-5)
    with pytest.raises(UserError, match="dense_mode"):
        build(dense_mode="vale")


def test_captions_that_reach_the_limit_are_counted():
    model = build()
    long = "a red heart and " * 40
    assert model(images(4), samples([long, *TEXTS[:3]]), mode="loss")["texts_at_limit"] == 0.25
    assert model(images(4), samples(TEXTS[:4]), mode="loss")["texts_at_limit"] == 0.0


def test_every_trained_parameter_gets_a_gradient_and_no_other():
    for loss in ({"mask_mode": "off", "scale": "learned"}, {"mask_mode": "hard"}, {"mask_mode": "soft"}):
        model = build(loss=loss, distillation={"images": 2})
        total(model(images(6), samples(TEXTS), mode="loss")).backward()
        for k, p in model.named_parameters():
            assert (p.grad is not None) == p.requires_grad, (loss, k)
        assert model.towers.logit_scale.requires_grad == (loss.get("scale") == "learned")


def test_clip_needs_no_mask_network_and_smartclip_does():
    model = SmartCLIPAlignment({"arch": "CLIP-toy"}, loss={"mask_mode": "off"})
    assert "loss_sparsity" not in model(images(2), samples(TEXTS[:2]), mode="loss")
    with pytest.raises(UserError, match="needs towers with a mask network"):
        SmartCLIPAlignment({"arch": "CLIP-toy"})
    with pytest.raises(UserError, match="number or 'learned'"):
        AlignmentLoss(scale="learnt")
    with pytest.raises(UserError, match="mask_mode"):
        AlignmentLoss(mask_mode="random")
    with pytest.raises(UserError, match="loss or predict"):
        model(images(1), samples(TEXTS[:1]), mode="train")


def run_rank(rank, world, meeting, share, distributed_file):
    torch.set_num_threads(1)
    # Meeting at a file: no port that another test could take, no server that leaves before its last client.
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world, timeout=timedelta(seconds=120)
    )
    from torch.nn.parallel import DistributedDataParallel

    model = DistributedDataParallel(build(), broadcast_buffers=False)
    first = sum(share[:rank])
    rows = slice(first, first + share[rank])
    loss = total(model(images(sum(share))[rows], samples(TEXTS[: sum(share)][rows]), mode="loss"))
    loss.backward()
    mean = loss.detach().clone()
    torch.distributed.all_reduce(mean)
    if rank == 0:
        grads = {k: p.grad for k, p in model.module.named_parameters() if p.grad is not None}
        torch.save({"loss": mean / world, "grads": grads}, distributed_file)
    torch.distributed.destroy_process_group()


@pytest.mark.dist
@pytest.mark.parametrize("share", [(3, 3), (4, 2)])
def test_two_processes_equal_one_on_the_joint_batch(share, tmp_path):
    multiprocessing.spawn(run_rank, (2, str(tmp_path / "meeting"), share, str(tmp_path / "out.pt")), nprocs=2)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    model = build()
    loss = total(model(images(6), samples(TEXTS), mode="loss"))
    loss.backward()
    assert torch.allclose(found["loss"], loss.detach(), rtol=1e-5)
    same_gradients(found["grads"], model)


def test_predict_gives_vectors_masks_and_scores_of_each_image():
    model = build().eval()
    bank = model.towers.encode_text(["a heart", "a star", "a ring"])
    model.set_text_banks({"shape": bank})
    batch = [
        BaseDataElement(metainfo={"captions": {"long": [TEXTS[i]], "short": TEXTS[:2]}, "present": {"shape": []}})
        for i in range(2)
    ]
    out = model(images(2), batch, mode="predict")
    vector = model.towers.encode_image(images(2))[1]
    assert torch.allclose(out[1].image_embed, vector, atol=1e-6)
    assert len(out[0].text_features["short"]) == 2
    embed, mask = out[1].text_features["long"][0]
    own = model.towers.encode_text([TEXTS[1]])
    assert torch.allclose(embed, own.embeds[0], atol=1e-6)
    assert torch.equal(mask, own.masks[0])
    masked = vector * bank.masks[2]
    assert torch.allclose(
        out[1].presence_scores["shape"]["masked"][2],
        functional.cosine_similarity(masked, bank.embeds[2], dim=0),
        atol=1e-6,
    )


def test_whitening_makes_patch_vectors_uncorrelated():
    tower = SmartCLIP.from_arch("SmartCLIP-toy").image_tower
    base = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    pixels = functional.interpolate(base, 64, mode="bicubic") + 0.3 * images(40)
    whiten_patch_embedding(tower, pixels, eps=1e-6)
    cells = tower.conv1(pixels).flatten(2).transpose(1, 2).reshape(-1, tower.width)
    covariance = torch.cov(cells.t())
    assert torch.allclose(covariance, torch.eye(tower.width), atol=0.02)
    with pytest.raises(UserError, match="at least as many patches"):
        whiten_patch_embedding(tower, pixels[:1])


def test_a_new_mask_network_joins_a_clip_checkpoint(tmp_path):
    from smartclip_det.models.towers.source import load_towers

    clip = SmartCLIP.from_arch("CLIP-toy", seed=3)
    path = clip.save(tmp_path / "clip.safetensors")
    joined = load_towers({"checkpoint": str(path), "mask_layers": 1, "seed": 5})
    again = load_towers({"checkpoint": str(path), "mask_layers": 1, "seed": 5})
    assert joined.config.mask_layers == 1
    assert torch.equal(joined.encode_image(images(1)), clip.encode_image(images(1)))
    assert joined.checkpoint_hash == again.checkpoint_hash
    assert joined.checkpoint_hash != load_towers({"checkpoint": str(path), "mask_layers": 1, "seed": 6}).checkpoint_hash


def test_distillation_is_zero_when_dense_and_crops_agree_and_trains_the_dense_side_only():
    class Teacher(torch.nn.Module):
        image_size, patch_size = 64, 8

        def forward(self, crops):
            return crops.mean(dim=(2, 3))

    part = RegionDistillation(weight=3.0, images=4, regions=2)
    flat = torch.rand(4, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(4, 3, 64, 64)
    dense = torch.nn.functional.avg_pool2d(flat, 8).clone().requires_grad_()
    found = part(Teacher(), flat, dense)
    assert found["loss_distillation"] < 1e-5
    (part(Teacher(), flat, dense * torch.tensor([1.0, -1.0, 1.0]).view(1, 3, 1, 1))["loss_distillation"]).backward()
    assert dense.grad.abs().sum() > 0
    rois = part.random_regions(4, 64, torch.device("cpu"))
    assert rois.shape == (8, 5)
    assert (rois[:, 1:] >= 0).all()
    assert (rois[:, 1:] <= 64).all()
    with pytest.raises(UserError, match="min_side"):
        RegionDistillation(min_side=0.8, max_side=0.4)
