"""The alignment model: loss, gradients, two processes, whitening, distillation."""

from __future__ import annotations

import pytest
import torch
from mmengine.structures import BaseDataElement
from torch.nn import functional

from smartclip_det.core.errors import UserError
from smartclip_det.models.alignment import SmartCLIPAlignment
from smartclip_det.models.alignment.distillation import RegionDistillation
from smartclip_det.models.losses import AlignmentLoss
from smartclip_det.models.regions import pool_regions
from smartclip_det.models.towers import SmartCLIP
from smartclip_det.models.towers.whitening import whiten_patch_embedding
from tests.processes import run_processes

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
    """The released loss reimplemented pair by pair: [B, B, D] masked images, normalised, times texts."""
    towers = model.towers
    found = towers.forward_text(towers.tokenize(texts))
    v, t = towers.encode_image(pixels), functional.normalize(found.embeds, dim=-1)
    p = found.mask_logits.sigmoid()
    m = (p >= 0.5).float() + p - p.detach()
    masked = v[:, None, :] * (m[None, :, :] if modular else m[:, None, :])
    logits = 100 * (functional.normalize(masked, dim=-1) * t[None]).sum(-1)
    target = torch.arange(len(texts))
    pair = functional.cross_entropy(logits, target) + functional.cross_entropy(logits.t(), target)
    return 10 * pair + 2 * m.abs().mean()


def same_gradients(found, model):
    """Within fp32 rounding of the largest gradient: some are zero up to rounding (a bias before a softmax)."""
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


FORMS = {
    "published": {},
    "in tiles": {"loss": {"tile": 5}},
    "sigmoid": {"loss": {"form": "sigmoid", "scale": "learned"}},
    "smoothed, text masked": {"loss": {"label_smoothing": 0.1, "text_norm": "masked", "mask_mode": "soft"}},
    "not modular": {"loss": {"modular": False}},
    "part by part": {"micro_batch": 1, "text_chunks": 2},
}


SHARES = {
    "published": [(3, 3), (4, 2), (1, 2, 3)],
    "in tiles": [(4, 2)],
    "sigmoid": [(2, 4)],
    "smoothed, text masked": [(1, 4, 1)],
    "not modular": [(4, 2)],
    "part by part": [(4, 2)],
}


def run_rank(rank, world):
    """Mean loss and gradients of each variant, for this number of processes."""
    from torch.nn.parallel import DistributedDataParallel

    found = {}
    for form, share in [(f, s) for f, shares in SHARES.items() for s in shares if len(s) == world]:
        model = DistributedDataParallel(build(**FORMS[form]), broadcast_buffers=False)
        first = sum(share[:rank])
        rows = slice(first, first + share[rank])
        loss = total(model(images(sum(share))[rows], samples(TEXTS[: sum(share)][rows]), mode="loss"))
        loss.backward()
        mean = loss.detach().clone()
        torch.distributed.all_reduce(mean)
        grads = {k: p.grad for k, p in model.module.named_parameters() if p.grad is not None}
        found[f"{form} {share}"] = {"loss": mean / world, "grads": grads}
    return found


@pytest.mark.dist
@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_equal_one_on_the_joint_batch(world, tmp_path):
    shares = [(form, share) for form, of in SHARES.items() for share in of if len(share) == world]
    found = run_processes(run_rank, world, tmp_path)
    for form, share in shares:
        model = build(**FORMS[form])
        if form == "published":
            loss = broadcast_loss(model, images(6), TEXTS)
        else:
            loss = total(model(images(6), samples(TEXTS), mode="loss"))
        loss.backward()
        for one in found:
            own = one[f"{form} {share}"]
            assert torch.allclose(own["loss"], loss.detach(), rtol=1e-5), (form, share)
            same_gradients(own["grads"], model)


def features(count=8, dim=512):
    g = torch.Generator().manual_seed(0)
    v, t, m = (torch.randn(count, dim, generator=g) for _ in range(3))
    return v, t + 0.05 * v, m


FEATURE_SHARES = [(8,), (5, 3), (2, 3, 3), (1, 1, 6)]


def features_rank(rank, world):
    """Loss and gradients of this process's rows; DDP averages them, so the joint loss is the mean over processes."""
    found = {}
    for share in [s for s in FEATURE_SHARES if len(s) == world]:
        rows = slice(sum(share[:rank]), sum(share[: rank + 1]))
        own = [x[rows].clone().requires_grad_() for x in features(sum(share))]
        loss = total(AlignmentLoss()(*own, torch.zeros(())))
        loss.backward()
        found[str(share)] = [loss.detach() / world, *(x.grad / world for x in own)]
    return found


@pytest.mark.dist
@pytest.mark.parametrize("world", [1, 2, 3])
def test_in_single_precision_loss_and_gradients_equal_the_released_form_to_a_millionth(world, tmp_path):
    """For images, texts and mask logits, against fp32 of the loss written as one tensor."""
    processes = [features_rank(0, 1)] if world == 1 else run_processes(features_rank, world, tmp_path)
    v, t, logits = (x.clone().requires_grad_() for x in features())
    p = logits.sigmoid()
    m = (p >= 0.5).float() + p - p.detach()
    masked = v[:, None] * m[None]
    scores = 100 * (masked / masked.norm(dim=-1, keepdim=True) * functional.normalize(t, dim=-1)[None]).sum(-1)
    target = torch.arange(8)
    pair = functional.cross_entropy(scores, target) + functional.cross_entropy(scores.t(), target)
    expected = 10 * pair + 2 * m.abs().mean()
    expected.backward()
    for share in [str(s) for s in FEATURE_SHARES if len(s) == world]:
        found = [one[share] for one in processes]
        assert sum(f[0] for f in found).item() == pytest.approx(expected.item(), rel=1e-6), share
        for n, x in enumerate((v, t, logits), 1):
            own_grad = torch.cat([f[n] for f in found])
            assert (own_grad - x.grad).norm() <= 1e-6 * x.grad.norm(), share


def outcome(model, count=6):
    """Loss and gradients of one batch."""
    loss = total(model(images(count), samples(TEXTS[:count]), mode="loss"))
    loss.backward()
    return loss.detach(), {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "options",
    [
        {"micro_batch": 2},
        {"micro_batch": 4},
        {"text_chunks": 3},
        {"checkpointing": True},
        {"micro_batch": 1, "text_chunks": 6, "checkpointing": True, "loss": {"tile": 7}},
    ],
)
@pytest.mark.parametrize("dense", [{}, {"dense_weight": 0.5, "distillation": {"images": 3, "teacher": "initial"}}])
def test_what_saves_memory_changes_neither_loss_nor_gradients(options, dense):
    torch.manual_seed(0)
    plain = build(**dense)
    expected, grads = outcome(plain.train())
    torch.manual_seed(0)
    again = build(**dense, **options)
    found, own = outcome(again.train())
    assert torch.allclose(found, expected, rtol=1e-5)
    same_gradients(grads, again)
    assert own.keys() == grads.keys()


@pytest.mark.parametrize("mask_pad", ["include", "ignore"])
def test_chunks_of_like_length_give_the_same_texts(mask_pad):
    from smartclip_det.models.towers.config import architecture

    torch.manual_seed(0)
    towers = SmartCLIP(architecture("SmartCLIP-tiny").with_(mask_pad=mask_pad)).eval()
    texts = ["a", "a red heart and a blue star and two circles", "two", "a ring on a dim background"]
    whole = towers.forward_text(towers.tokenize(texts))
    embeds, logits = towers.forward_text_by_length(towers.tokenize(texts), 3)
    assert torch.allclose(embeds, whole.embeds, atol=1e-5)
    assert torch.allclose(logits, whole.mask_logits, atol=1e-5)


def test_top_k_masks_have_k_dimensions_in_training_and_in_banks():
    model = SmartCLIPAlignment({"arch": "SmartCLIP-tiny", "seed": 0, "mask_top_k": 10}, loss={"sparsity_weight": 0.0})
    assert model.towers.encode_text(TEXTS).masks.sum(dim=1).tolist() == [10.0] * 6
    losses = model(images(6), samples(TEXTS), mode="loss")
    assert losses["mask_density"].item() == pytest.approx(10 / 64)
    total(losses).backward()
    assert model.towers.mask_network.attn_pool.attention.weight.grad.abs().sum() > 0
    with pytest.raises(UserError, match="mask_top_k"):
        SmartCLIPAlignment({"arch": "SmartCLIP-tiny", "mask_top_k": 64})


def test_low_rank_updates_start_at_nothing_train_alone_and_are_read_as_towers(tmp_path):
    plain, model = build(), build(low_rank={"rank": 4})
    before = plain(images(2), samples(TEXTS[:2]), mode="loss")
    assert torch.allclose(
        model(images(2), samples(TEXTS[:2]), mode="loss")["loss_sidm"], before["loss_sidm"], rtol=1e-5
    )
    trained = {k for k, p in model.named_parameters() if p.requires_grad}
    assert all("mask_network" in k or k.endswith((".up", ".down")) for k in trained)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    total(model(images(6), samples(TEXTS), mode="loss")).backward()
    optimizer.step()
    expected = model.towers.encode_image(images(2))
    assert not torch.allclose(expected, plain.towers.encode_image(images(2)), atol=1e-4)
    torch.save(
        {"meta": {"tower_config": model.towers.config.to_dict()}, "state_dict": model.state_dict()},
        tmp_path / "epoch_1.pth",
    )
    read = SmartCLIP.from_checkpoint(tmp_path / "epoch_1.pth")
    assert torch.allclose(read.encode_image(images(2)), expected, atol=1e-5)
    assert torch.allclose(
        SmartCLIP.from_checkpoint(model.towers.save(tmp_path / "t.safetensors")).encode_image(images(2)),
        expected,
        atol=1e-5,
    )
    with pytest.raises(UserError, match="rank"):
        build(low_rank={"rank": 0})


def test_the_initial_tower_teaches_and_is_neither_trained_nor_saved():
    model = build(distillation={"images": 2, "teacher": "initial"})
    assert not any("distillation" in k for k in model.state_dict())
    assert not any("distillation" in k for k, _ in model.named_parameters())
    with torch.no_grad():
        model.towers.image_tower.proj.zero_()
    torch.manual_seed(0)
    losses = model(images(2), samples(TEXTS[:2]), mode="loss")
    # The trained tower outputs zeros; the initial one still gives a target.
    assert losses["loss_distillation"].item() == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(UserError, match="teacher"):
        build(distillation={"teacher": "first"})


def test_regions_are_matched_with_their_texts_under_their_masks():
    model = build(region_contrast={"weight": 2.0, "images": 2, "scale": 20.0})
    batch = samples(TEXTS[:3])
    told = [["a heart", "a star"], ["a star"], ["a ring"]]
    boxes = [[[0.0, 0, 32, 32], [32.0, 32, 64, 64]], [[8.0, 8, 56, 40]], [[0.0, 0, 64, 64]]]
    for s, b, t in zip(batch, boxes, told, strict=True):
        s.set_metainfo({"region_boxes": b, "region_texts": t})
    losses = model(images(3), batch, mode="loss")
    towers, index = model.towers, {"a heart": 0, "a star": 1}
    dense = towers.encode_dense(images(3))
    bank = towers.encode_text(list(index))
    values = []
    for i in (0, 1):
        for box, text in zip(boxes[i], told[i], strict=True):
            vector = pool_regions(dense, torch.tensor([[float(i), *box]]), 8)[0]
            logits = 20 * torch.stack(
                [
                    functional.cosine_similarity(vector * m, e, dim=0)
                    for e, m in zip(bank.embeds, bank.masks, strict=True)
                ]
            )
            values.append(functional.cross_entropy(logits[None], torch.tensor([index[text]])))
    assert losses["loss_region"].item() == pytest.approx(2 * torch.stack(values).mean().item(), rel=1e-4)
    for s in batch:
        s.set_metainfo({"region_boxes": [], "region_texts": []})
    assert model(images(3), batch, mode="loss")["loss_region"].item() == 0
    with pytest.raises(UserError, match="needs regions"):
        model(images(3), samples(TEXTS[:3]), mode="loss")


def test_component_matching_takes_part_of_the_image_for_the_second_text():
    from smartclip_det.core.contrastive import principal_part

    model = SmartCLIPAlignment(
        {"arch": "CLIP-toy", "seed": 0},
        component_matching=2,
        loss={"mask_mode": "off", "alignment_weight": 1.0, "label_smoothing": 0.1},
    )
    pairs = [BaseDataElement(metainfo={"drawn_captions": [a, b]}) for a, b in zip(TEXTS, TEXTS[::-1], strict=True)]
    found = model(images(6), pairs, mode="loss")
    towers = model.towers
    v = towers.encode_image(images(6))
    terms = []
    for vectors, texts in ((v, TEXTS), (principal_part(v, 2), TEXTS[::-1])):
        t = towers.forward_text(towers.tokenize(list(texts))).embeds
        logits = 100 * functional.normalize(vectors, dim=-1) @ functional.normalize(t, dim=-1).t()
        target = torch.arange(6)
        terms.append(
            functional.cross_entropy(logits, target, label_smoothing=0.1)
            + functional.cross_entropy(logits.t(), target, label_smoothing=0.1)
        )
    assert total(found).item() == pytest.approx((sum(terms) / 2).item(), rel=1e-4)


def test_uint8_pixels_are_normalised_as_floats_were():
    model = build()
    raw = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in SmartCLIP.image_statistics())
    assert torch.allclose(model(raw), model((raw.float() / 255 - mean) / std), atol=1e-6)


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
        out[1].presence_scores["shape"]["hard"][2],
        functional.cosine_similarity(masked, bank.embeds[2], dim=0),
        atol=1e-6,
    )


def test_whitening_makes_patch_vectors_uncorrelated():
    tower = SmartCLIP.from_arch("SmartCLIP-toy-ViT").image_tower
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


def test_what_a_source_says_of_masks_holds_for_every_checkpoint(tmp_path):
    from smartclip_det.models.towers.source import load_towers

    path = SmartCLIP.from_arch("SmartCLIP-tiny").save(tmp_path / "smart.safetensors")
    for source in ({"arch": "SmartCLIP-tiny"}, {"checkpoint": str(path)}):
        towers = load_towers({**source, "mask_pad": "include", "mask_top_k": 5})
        assert towers.mask_network.mask_pad == towers.config.mask_pad == "include"
        assert towers.encode_text(["a dog"]).masks.sum() == 5


def test_tokens_over_the_context_are_refused():
    model = build()
    sample = BaseDataElement(metainfo={"drawn_tokens": [[49406, *range(1, 90), 49407]]})
    with pytest.raises(UserError, match="yields 91 tokens but the towers take 77"):
        model(images(1), [sample], mode="loss")


def test_sparsity_comes_in_step_by_step_and_from_any_step():
    from types import SimpleNamespace

    from smartclip_det.engine.alignment_hooks import SparsityRampHook

    model = build(loss={"sparsity_weight": 4.0})
    hook, weights = SparsityRampHook(begin=10, end=20), []
    for step in (0, 10, 15, 20, 50, 15):
        hook.before_train_iter(SimpleNamespace(model=model, iter=step), 0)
        weights.append(model.loss.sparsity_weight)
    assert weights == [0, 0, 2, 4, 4, 2]
    found = {k: v.item() for k, v in model(images(6), samples(TEXTS), mode="loss").items()}
    assert found["loss_sparsity"] == pytest.approx(2 * found["mask_density"], rel=1e-4)
    with pytest.raises(UserError, match="0 <= begin < end"):
        SparsityRampHook(begin=5, end=5)
