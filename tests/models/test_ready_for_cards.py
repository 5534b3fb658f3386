"""Requirements of multi-GPU strategies on models: no scalar parameters, and complete half-precision weights."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.structures import BaseDataElement

from smartclip_det.engine.resuming import _fit_scalars
from smartclip_det.models.alignment import SmartCLIPAlignment
from smartclip_det.models.towers import SmartCLIP
from smartclip_det.models.towers.transformer import MLP, ResidualBlock
from smartclip_det.studies.benchmarks.counting import CudaAutocast
from smartclip_det.utils.scalar_parameters import keep_scalars_in_files, scalar_parameter
from tests.pretended import PretendedCard

TINY = {"arch": "SmartCLIP-tiny", "seed": 0}


def batch(count=4):
    samples = [
        BaseDataElement(
            metainfo={
                "drawn_tokens": [[49406, 320 + n, 49407]],
                "region_texts": [["a cup"], ["a dog"]][n % 2],
                "region_boxes": [[4.0, 4, 40, 50]],
            }
        )
        for n in range(count)
    ]
    pixels = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return pixels, samples


def every_model():
    yield SmartCLIPAlignment(TINY, loss={"form": "sigmoid", "scale": "learned"})
    from smartclip_det import register_detection  # noqa: F401
    from smartclip_det.models.detectors.smartclip_grounding_dino import SentenceContrast
    from smartclip_det.models.grounding.fusion_head import FusionHead
    from smartclip_det.models.roi_heads.open_vocab_bbox_head import OpenVocabBBoxHead

    yield FusionHead(channels=8, text_width=8, embed_dim=8, grid=2, text_length=4, dim=16, layers=1, heads=2)
    yield OpenVocabBBoxHead(embed_dim=8, in_channels=4, roi_size=3, num_convs=1, fc_channels=8)
    yield SentenceContrast(torch.nn.Linear(4, 4), 8, 16)


def test_no_parameter_is_a_scalar_and_files_hold_scalars():
    names = set()
    for model in every_model():
        scalars = {k for k, v in model.state_dict().items() if v.shape == () and k in dict(model.named_parameters())}
        names |= {n.split(".")[-1] for n in scalars}
        assert all(p.dim() > 0 for p in model.parameters())
        # Older checkpoints, with scalars, are read.
        state = {k: v.clone() + (1 if k in scalars else 0) for k, v in model.state_dict().items()}
        model.load_state_dict(state)
        own = model.state_dict()
        assert all(torch.equal(own[k], state[k]) for k in state)
        copied = copy.deepcopy(model)
        assert all(copied.state_dict()[k].shape == () for k in scalars)
    assert names == {"logit_scale", "bias", "log_temperature", "map_scale", "map_bias", "scale"}


def test_pieces_without_a_share_stay_as_they_are():
    module = torch.nn.Module()
    module.a = scalar_parameter(2.0)
    keep_scalars_in_files(module, "a", "absent")
    assert module.state_dict(prefix="x.")["x.a"].shape == ()
    module.a.data = torch.zeros(0)
    assert module.state_dict()["a"].shape == (0,)


def test_moments_of_older_checkpoints_fit():
    module = torch.nn.Module()
    module.w, module.a = torch.nn.Parameter(torch.ones(1)), scalar_parameter(2.0)
    optimizer = torch.optim.AdamW([{"params": [module.w]}, {"params": [module.a]}], lr=0.1)
    (module.w.sum() + module.a.sum()).backward()
    optimizer.step()
    old = copy.deepcopy(optimizer.state_dict())
    for key in ("exp_avg", "exp_avg_sq"):
        old["state"][1][key] = old["state"][1][key].reshape(())
    _fit_scalars(type("R", (), {"optim_wrapper": type("W", (), {"optimizer": optimizer})})(), old)
    assert old["state"][1]["exp_avg"].shape == old["state"][1]["exp_avg_sq"].shape == (1,)
    assert old["state"][1]["step"].shape == ()
    optimizer.load_state_dict(old)
    optimizer.step()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"micro_batch": 2},
        {"loss": {"form": "sigmoid", "scale": "learned"}},
        {"component_matching": 2},
        {"distillation": {"images": 2}, "dense_weight": 0.5},
        {"region_contrast": {"images": 4}},
        {"distillation": {"images": 2, "teacher": "current"}},
        {"low_rank": {"rank": 2}},
    ],
)
def test_weights_in_bf16_take_uint8_and_fp32_pixels(options):
    """DeepSpeed casts the whole model to bf16; pixels stay fp32 until the first convolution."""
    pixels, samples = batch()
    exact = SmartCLIPAlignment(TINY, **options).train()
    whole = copy.deepcopy(exact).bfloat16()
    torch.manual_seed(0)
    expected = exact(pixels, samples, mode="loss")
    for given in (pixels, exact.normalised(pixels)):
        torch.manual_seed(0)
        found = whole(given, samples, mode="loss")
        for key in (k for k in found if "loss" in k):
            assert float(found[key]) == pytest.approx(float(expected[key]), rel=0.15, abs=0.05), key
    sum(v for k, v in found.items() if "loss" in k).backward()
    trained = [p for p in whole.parameters() if p.requires_grad]
    assert all(torch.isfinite(p.grad).all() for p in trained if p.grad is not None)
    assert sum(p.grad is not None for p in trained) > 10


def test_vectors_of_a_tower_in_bf16_are_near():
    towers = SmartCLIP.from_arch("SmartCLIP-tiny")
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = towers.encode_image(pixels)
        found = copy.deepcopy(towers).bfloat16().encode_image(pixels)
    assert torch.nn.functional.cosine_similarity(found.float(), exact).min() > 0.999


class Saved:
    """Bytes that autograd saves for the backward pass, each storage once."""

    def __enter__(self):
        self.kept = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda x: x)
        self.hooks.__enter__()
        return self

    def pack(self, x):
        self.kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    def __exit__(self, *error):
        self.hooks.__exit__(*error)


@pytest.mark.parametrize("tokens", [1, 64])
def test_a_folded_quick_gelu_is_quick_gelu_and_keeps_less(tokens):
    torch.manual_seed(0)
    mlp = MLP(16, "quick_gelu")
    found, kept = [], []
    for plain in (False, True):
        x = torch.randn(4, tokens, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
        mlp.zero_grad()
        with Saved() as saved:
            y = mlp.c_proj(mlp.activation(mlp.c_fc(x))) if plain else mlp(x)
        y.square().sum().backward()
        found.append([y, x.grad, *(p.grad.clone() for p in mlp.parameters())])
        kept.append(sum(saved.kept.values()))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    if tokens == 64:
        # One of three tensors of the MLP's width is not saved, at the cost of two copies of the weights.
        inner = 4 * tokens * 64 * 4
        assert kept[0] <= kept[1] - inner + 3 * 16 * 64 * 4
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), found[1][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("constructor", ["FusedConstructor", "NamedGroupsConstructor"])
def test_adam_is_fused_on_a_card_and_a_run_that_goes_on_elsewhere_is_not(constructor):
    from types import SimpleNamespace

    from mmengine.optim import build_optim_wrapper

    from smartclip_det.engine import alignment_optim, optim  # noqa: F401
    from smartclip_det.engine.resuming import _changed_groups, _keep_kernels

    def build(**options):
        given = {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.1, **options}
        return build_optim_wrapper(model, {"constructor": constructor, "optimizer": given})

    model = torch.nn.Linear(3, 2)
    plain = build()
    assert not plain.optimizer.defaults["fused"]
    with PretendedCard():
        model.to("cuda")
        wrapper = build()
        assert wrapper.optimizer.defaults["fused"]
        assert all(g["fused"] for g in wrapper.optimizer.param_groups)
        assert not build(fused=False).optimizer.defaults["fused"]
        assert not build(foreach=True).optimizer.defaults["fused"]
        sgd = {"constructor": constructor, "optimizer": {"type": "SGD", "lr": 1e-3}}
        assert not build_optim_wrapper(model, sgd).optimizer.defaults["fused"]
        model(torch.ones(1, 3, device="cuda")).sum().backward()
        wrapper.step()
    checkpoint = wrapper.state_dict()
    runner = SimpleNamespace(optim_wrapper=plain)
    assert _changed_groups(plain.param_groups, checkpoint)
    _keep_kernels(runner, checkpoint)
    assert not _changed_groups(plain.param_groups, checkpoint)
    plain.load_state_dict(checkpoint)
    assert not plain.optimizer.param_groups[0]["fused"]


def test_half_residuals_are_half_under_autocast_alone_and_train_alike():
    pixels, samples = batch()
    soft = {"mask_mode": "soft"}
    models = {half: SmartCLIPAlignment(TINY, soft, half_residuals=half).train() for half in (False, True)}
    seen = {}

    def gradients(half, enabled):
        model = models[half]
        model.zero_grad()
        kinds = set()
        hooks = [
            block.register_forward_pre_hook(lambda _, args: kinds.add(args[0].dtype))
            for block in model.modules()
            if isinstance(block, ResidualBlock)
        ]
        # Precisions as on a GPU: CPU autocast leaves norms in half precision.
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), CudaAutocast():
            losses = model(pixels, samples, mode="loss")
        sum(v for k, v in losses.items() if k.startswith("loss")).backward()
        for hook in hooks:
            hook.remove()
        seen[half, enabled] = kinds
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    exact = gradients(False, False)
    assert torch.equal(gradients(True, False), exact)
    cosine = {
        half: torch.nn.functional.cosine_similarity(gradients(half, True), exact, dim=0).item() for half in models
    }
    assert seen == {
        (False, False): {torch.float32},
        (True, False): {torch.float32},
        (False, True): {torch.float32},
        (True, True): {torch.bfloat16},
    }
    assert min(cosine.values()) > 0.99, cosine
    assert cosine[True] > cosine[False] - 0.005, cosine


def test_a_frozen_tower_on_a_card_folds_its_activation():
    mlp, x = MLP(16, "quick_gelu"), torch.randn(4, 64, 16)
    with torch.no_grad():
        assert not mlp.folds(x)
        expected = mlp(x)
        with PretendedCard():
            assert mlp.folds(x.to("cuda"))
            assert not mlp.folds(x[:1, :1].to("cuda"))
            torch.testing.assert_close(mlp.to("cuda")(x.to("cuda")).cpu(), expected, rtol=1e-5, atol=1e-6)
