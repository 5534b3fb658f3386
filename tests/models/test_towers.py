"""Our towers against open_clip on the same random weights, and against independent interpolation."""

from __future__ import annotations

import open_clip
import pytest
import torch
from torch.nn import functional

from smartclip_det.core.errors import UserError
from smartclip_det.core.grid import resize_image_positions, stretch_text_positions
from smartclip_det.models.towers import SmartCLIP, TowerConfig
from smartclip_det.models.towers.layouts import infer_config

TEXTS = ["a photo of a cat", "two dogs on the grass, running after a red ball", ""]
SMALL = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 128, "patch_size": 16, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
}


def pair(name: str):
    """An open_clip model with random weights, and our towers with the same weights."""
    if name == "small":
        oracle = open_clip.CLIP(**SMALL)
    elif name == "small-gelu-248":
        oracle = open_clip.CLIP(
            **{**SMALL, "quick_gelu": False, "text_cfg": {**SMALL["text_cfg"], "context_length": 248}}
        )
    else:
        oracle = open_clip.create_model(name)
    state = oracle.eval().state_dict()
    config = infer_config(state, name).with_(activation="gelu" if "gelu-248" in name else "quick_gelu")
    ours = SmartCLIP(config).eval()
    ours.load_openai_state(state)
    return oracle, ours


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return pair("small")


@pytest.mark.parametrize(
    "name", ["small", "small-gelu-248", "ViT-B-16-quickgelu", "ViT-B-32-quickgelu", "ViT-L-14-quickgelu"]
)
@torch.no_grad()
def test_features_equal_open_clip_at_native_size(name):
    torch.manual_seed(1)
    oracle, ours = pair(name)
    size = ours.config.image_size
    images = torch.randn(2, 3, size, size)
    assert torch.allclose(ours.encode_image(images), oracle.encode_image(images), atol=1e-5)
    tokens = open_clip.SimpleTokenizer(context_length=ours.config.context_length)(TEXTS)
    theirs = oracle.encode_text(tokens)
    assert torch.allclose(ours.forward_text(tokens).embeds, theirs, atol=1e-5)
    # Removing padding changes nothing, because attention is causal and the end token is pooled.
    assert torch.allclose(ours.forward_text(ours.tokenize(TEXTS)).embeds, theirs, atol=1e-5)
    layers = sorted({0, ours.config.vision_layers // 2, ours.config.vision_layers - 1})
    expected = oracle.visual.forward_intermediates(images, indices=layers, output_fmt="NCHW")["image_intermediates"]
    out = ours.image_tower.features(images, taps=layers, dense_mode="vanilla", pooled=True)
    for tap, other in zip(out.taps, expected, strict=True):
        assert torch.allclose(tap, other, atol=1e-4, rtol=1e-4)
    dense = oracle.visual.ln_post(expected[-1].flatten(2).transpose(1, 2)) @ oracle.visual.proj
    assert torch.allclose(out.dense.flatten(2).transpose(1, 2), dense, atol=1e-5)
    assert torch.allclose(out.pooled, oracle.encode_image(images), atol=1e-5)


@pytest.mark.parametrize("size", [(64, 96), (96, 48), (128, 128), (32, 160)])
@torch.no_grad()
def test_other_sizes_equal_open_clip_with_an_independently_resized_table(small, size):
    _, ours = small
    grid = (size[0] // 16, size[1] // 16)
    table = ours.image_tower.positional_embedding.detach()
    # PIL's antialiased bicubic, channel by channel, independent of torch's interpolation.
    from PIL import Image

    cells = table[1:].reshape(4, 4, -1).numpy()
    import numpy as np

    resized = np.stack(
        [
            np.asarray(Image.fromarray(cells[..., c]).resize((grid[1], grid[0]), Image.BICUBIC))
            for c in range(cells.shape[-1])
        ],
        axis=-1,
    )
    expected = torch.cat([table[:1], torch.from_numpy(resized).reshape(-1, table.shape[1])])
    assert torch.allclose(resize_image_positions(table, grid), expected, atol=1e-5)
    oracle = open_clip.CLIP(**{**SMALL, "vision_cfg": {**SMALL["vision_cfg"], "image_size": size}}).eval()
    state = {**ours.openai_state(), "visual.positional_embedding": expected}
    oracle.load_state_dict(state, strict=False)
    images = torch.randn(2, 3, *size)
    assert torch.allclose(ours.encode_image(images), oracle.encode_image(images), atol=1e-5)


@torch.no_grad()
def test_sizes_that_are_no_multiple_of_the_patch_are_padded_not_cut(small):
    _, ours = small
    images = torch.randn(1, 3, 70, 50)
    padded = functional.pad(images, (0, 14, 0, 10))
    assert torch.equal(ours.encode_dense(images), ours.encode_dense(padded))
    assert ours.encode_dense(images).shape == (1, 64, 5, 4)


@torch.no_grad()
def test_dense_modes_against_their_definitions(small):
    _, ours = small
    tower, images = ours.image_tower, torch.randn(2, 3, 64, 64)
    block = tower.transformer.resblocks[-1]
    patches = []
    handle = block.register_forward_pre_hook(lambda module, args: patches.append(args[0]))
    tower(images)
    handle.remove()
    x = patches[0]
    width, heads = x.shape[-1], block.attn.heads
    qkv = functional.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
    q, k, v = (t.view(2, 17, heads, -1).transpose(1, 2) for t in qkv.split(width, dim=-1))

    def correlate(a):
        return torch.softmax(torch.einsum("bhid,bhjd->bhij", a, a) * (width // heads) ** -0.5, dim=-1)

    def read(attended, whole=True):
        out = block.attn.out_proj(attended.transpose(1, 2).reshape(2, 17, width))
        if whole:
            out = x + out
            out = out + block.mlp(block.ln_2(out))
        return (tower.ln_post(out[:, 1:]) @ tower.proj).transpose(1, 2).reshape(2, -1, 4, 4)

    expected = {
        "value": read(v),
        "qq_kk": read((correlate(q) + correlate(k)) @ v),
        "clearclip": read(correlate(q) @ v, whole=False),
    }
    for mode, value in expected.items():
        assert torch.allclose(ours.encode_dense(images, mode), value, atol=1e-5), mode
    with pytest.raises(UserError, match="Nearest: clearclip"):
        ours.encode_dense(images, "clear_clip")


@torch.no_grad()
def test_asking_for_less_gives_the_same_values(small):
    _, ours = small
    images = torch.randn(1, 3, 64, 80)
    everything = ours.image_tower.features(images, taps=(0, 1, 2), dense_mode="value", pooled=True)
    taps = ours.image_tower.features(images, taps=(0, 1))
    assert taps.dense is None
    assert taps.pooled is None
    assert torch.equal(taps.taps[1], everything.taps[1])
    assert torch.equal(ours.image_tower.features(images, dense_mode="value").dense, everything.dense)
    assert torch.equal(ours.image_tower.features(images, taps=(-1,)).taps[0], everything.taps[2])
    with pytest.raises(UserError, match=r"layers 0\.\.2"):
        ours.image_tower.features(images, taps=(3,))


@torch.no_grad()
def test_windows_that_hold_the_whole_grid_equal_global_attention(small):
    _, ours = small
    images = torch.randn(2, 3, 48, 80)
    expected = ours.encode_dense(images)
    tower = ours.image_tower
    try:
        tower.window_size = 5
        assert torch.allclose(ours.encode_dense(images), expected, atol=1e-5)
        tower.window_size = 2
        small_windows = ours.encode_dense(images)
        assert not torch.allclose(small_windows, expected, atol=1e-3)
        tower.global_layers = frozenset((0, 1))
        assert torch.allclose(ours.encode_dense(images), expected, atol=1e-5)
        # A window attends to its own cells and the class token: distant pixels act only through the class token.
    finally:
        tower.window_size, tower.global_layers = 0, frozenset()


@torch.no_grad()
def test_windowed_attention_cell_by_cell():
    from smartclip_det.models.towers.transformer import windowed_attention

    h, w, size = 3, 5, 2
    q, k, v = (torch.randn(1, 2, 1 + h * w, 4) for _ in range(3))
    out = windowed_attention(q, k, v, size, h, w)
    for y in range(h):
        for x in range(w):
            seen = [0] + [
                1 + yy * w + xx
                for yy in range(h)
                for xx in range(w)
                if (yy // size, xx // size) == (y // size, x // size)
            ]
            i = 1 + y * w + x
            expected = functional.scaled_dot_product_attention(q[:, :, i : i + 1], k[:, :, seen], v[:, :, seen])
            assert torch.allclose(out[:, :, i : i + 1], expected, atol=1e-6)


def test_checkpointing_gives_the_same_gradients():
    grads = []
    for flag in (False, True):
        torch.manual_seed(0)
        config = TowerConfig(
            embed_dim=32,
            image_size=32,
            patch_size=8,
            vision_width=64,
            vision_layers=3,
            vision_heads=2,
            text_width=32,
            text_layers=1,
            text_heads=2,
        )
        model = SmartCLIP(config, checkpointing=flag).train()
        model.encode_image(torch.ones(1, 3, 32, 32)).sum().backward()
        grads.append(model.image_tower.conv1.weight.grad.clone())
    assert torch.allclose(*grads, atol=1e-6)


class TestMaskNetwork:
    def model(self, **changes):
        torch.manual_seed(0)
        return SmartCLIP(
            TowerConfig(
                embed_dim=64,
                image_size=32,
                patch_size=16,
                vision_width=64,
                vision_layers=1,
                vision_heads=1,
                text_width=64,
                text_layers=1,
                text_heads=1,
                mask_layers=1,
                **changes,
            )
        ).eval()

    @torch.no_grad()
    def test_equals_the_definition_on_stock_torch_modules(self):
        model = self.model(mask_pad="include")
        net = model.mask_network
        block = net.resblocks[0]
        attention = torch.nn.MultiheadAttention(64, 1, batch_first=True)
        attention.load_state_dict(
            {k.removeprefix("attn."): v for k, v in block.state_dict().items() if k.startswith("attn.")}
        )
        states = torch.randn(3, 77, 64)
        y = block.ln_1(states)
        x = states + attention(y, y, y)[0]
        h = functional.linear(block.ln_2(x), block.mlp.c_fc.weight, block.mlp.c_fc.bias)
        x = x + functional.linear(h * torch.sigmoid(1.702 * h), block.mlp.c_proj.weight, block.mlp.c_proj.bias)
        weights = torch.softmax(x @ net.attn_pool.attention.weight[0] + net.attn_pool.attention.bias, dim=1)
        expected = torch.einsum("kl,klw->kw", weights, x)
        assert torch.allclose(net(states), expected, atol=1e-5)

    def test_about_half_of_the_dimensions_are_on_at_first_and_the_text_tower_gets_no_gradient(self):
        model = SmartCLIP.from_arch("SmartCLIP-B-16")
        features = model.forward_text(model.tokenize(["a red cup on a table", "the sky"]))
        assert 180 < (features.mask_logits >= 0).sum(1).float().mean() < 332
        features.mask_logits.sum().backward()
        assert model.mask_network.attn_pool.attention.weight.grad.abs().sum() > 0
        assert all(p.grad is None for p in model.text_tower.parameters())

    @torch.no_grad()
    def test_padding_matters_for_include_and_not_for_ignore(self):
        from smartclip_det.models.towers.tokenizer import tokenize

        for pad, equal in (("include", False), ("ignore", True)):
            model = self.model(mask_pad=pad)
            short, long = (model.forward_text(tokenize("a cat", length)).mask_logits for length in (4, 77))
            assert torch.allclose(short, long, atol=1e-5) is equal

    def test_other_text_width_gets_a_projection(self):
        torch.manual_seed(0)
        config = TowerConfig(
            embed_dim=48,
            image_size=32,
            patch_size=16,
            vision_width=64,
            vision_layers=1,
            vision_heads=1,
            text_width=64,
            text_layers=1,
            text_heads=1,
            mask_layers=1,
        )
        model = SmartCLIP(config)
        assert model.encode_text(["a"]).masks.shape == (1, 48)


@torch.no_grad()
def test_stretched_tower_reads_both_tables():
    config = TowerConfig(
        embed_dim=32,
        image_size=32,
        patch_size=16,
        vision_width=64,
        vision_layers=1,
        vision_heads=1,
        text_width=32,
        text_layers=2,
        text_heads=2,
    )
    torch.manual_seed(0)
    short = SmartCLIP(config).eval()
    state = short.openai_state()
    long_table = stretch_text_positions(state["positional_embedding"])
    junk = torch.full_like(long_table, 99.0)
    frozen, trained = long_table.clone(), long_table.clone()
    frozen[20:], trained[:20] = junk[20:], junk[:20]
    long = SmartCLIP(config.with_(context_length=248, stretched=True)).eval()
    long.load_openai_state({**state, "positional_embedding": frozen, "positional_embedding_res": trained})
    assert torch.allclose(long.text_tower.positions(248), long_table)
    assert not long.text_tower.positional_embedding.requires_grad
    # Below 20 tokens nothing was stretched, so both towers agree.
    assert torch.allclose(short.encode_text(["a cat"]).embeds, long.encode_text(["a cat"]).embeds, atol=1e-6)
    assert long.encode_text(["word " * 200]).embeds.shape == (1, 32)
    with pytest.raises(UserError, match="over the limit of 77"):
        short.encode_text(["word " * 200])


def test_the_hash_follows_the_weights():
    model, other = SmartCLIP.from_arch("SmartCLIP-tiny"), SmartCLIP.from_arch("SmartCLIP-tiny", seed=7)
    before = model.checkpoint_hash
    model.load_state_dict(other.state_dict())
    assert model.checkpoint_hash == other.checkpoint_hash != before
    model.train()
    with torch.no_grad():
        model.text_tower.text_projection.mul_(2)
    assert model.eval().checkpoint_hash != other.checkpoint_hash


def test_random_architectures_depend_on_the_seed_alone():
    a, b, c = (SmartCLIP.from_arch("SmartCLIP-tiny", seed=s) for s in (0, 0, 1))
    assert a.checkpoint_hash == b.checkpoint_hash != c.checkpoint_hash
    with pytest.raises(UserError, match="Nearest: SmartCLIP-B-16"):
        SmartCLIP.from_arch("SmartCLIP-B16")
