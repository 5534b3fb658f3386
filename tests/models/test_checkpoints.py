from __future__ import annotations

import json
import pickle

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from smartclip_det.core.errors import UserError
from smartclip_det.models.towers import SmartCLIP, TowerConfig, read_checkpoint
from smartclip_det.models.towers.layouts import to_huggingface, to_native
from smartclip_det.utils.safe_load import safe_torch_load

TINY = TowerConfig(
    embed_dim=64,
    image_size=32,
    patch_size=16,
    vision_width=64,
    vision_layers=2,
    vision_heads=1,
    text_width=64,
    text_layers=2,
    text_heads=1,
    vocab_size=49408,
)


def towers(**changes) -> SmartCLIP:
    torch.manual_seed(0)
    return SmartCLIP(TINY.with_(**changes)).eval()


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("layout", ["openai", "native"])
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"context_length": 248, "stretched": True},
        {"context_length": 248, "stretched": True, "mask_layers": 1, "mask_pad": "include"},
    ],
)
def test_round_trips_are_exact(tmp_path, suffix, layout, kind):
    model = towers(**kind)
    path = model.save(tmp_path / f"w{suffix}", layout=layout)
    assert not list(tmp_path.glob("*.part"))
    loaded = SmartCLIP.from_checkpoint(path)
    assert equal(loaded.openai_state(), model.openai_state())
    assert loaded.config == model.config
    assert loaded.checkpoint_hash == model.checkpoint_hash


@pytest.mark.parametrize(("written", "renamed"), [("w.safetensors", "w.pt"), ("w.pt", "w.safetensors")])
def test_a_renamed_file_is_read_by_its_content(tmp_path, written, renamed):
    model = towers(mask_layers=1)
    path = model.save(tmp_path / written, layout="native").rename(tmp_path / renamed)
    assert equal(SmartCLIP.from_checkpoint(path).openai_state(), model.openai_state())


@pytest.mark.parametrize(("arch", "count"), [("ViT-B-16", 302), ("LongCLIP-B-16", 303), ("SmartCLIP-B-16", 317)])
def test_released_layouts_have_their_published_number_of_tensors(tmp_path, arch, count):
    model = SmartCLIP.from_arch(arch)
    path = model.save(tmp_path / "released.pt")
    raw = torch.load(path, weights_only=True)
    assert len(raw) == count
    assert sum(k.startswith("mask_net.") for k in raw) == (14 if count == 317 else 0)
    read = read_checkpoint(path)
    assert read.config == model.config
    assert read.unmatched == []
    assert equal(read.state, model.openai_state())


def test_hugging_face_folder_and_file(tmp_path):
    model = towers(activation="gelu")
    tensors = to_huggingface(model.openai_state())
    assert "vision_model.encoder.layers.1.self_attn.q_proj.bias" in tensors
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "vision_config": {"hidden_act": "gelu", "num_attention_heads": 1},
                "text_config": {"hidden_act": "gelu", "num_attention_heads": 1},
            }
        )
    )
    folder = SmartCLIP.from_checkpoint(tmp_path)
    assert equal(folder.openai_state(), model.openai_state())
    assert folder.config.activation == "gelu"
    file = read_checkpoint(tmp_path / "model.safetensors", activation="gelu")
    assert equal(file.state, model.openai_state())


def test_open_clip_training_checkpoint_with_module_prefix(tmp_path, caplog):
    oracle = open_clip.CLIP(
        embed_dim=64,
        vision_cfg={"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
        text_cfg={"width": 64, "heads": 1, "layers": 2},
    )
    state = {f"module.{k}": v for k, v in oracle.state_dict().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state}, tmp_path / "epoch_3.pt")
    model = SmartCLIP.from_checkpoint(tmp_path / "epoch_3.pt")
    assert model.config.activation == "gelu"
    assert "assuming gelu" in caplog.text
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model.encode_image(images), oracle.eval().encode_image(images), atol=1e-5)


def test_mmengine_checkpoint_with_its_history_classes(tmp_path):
    import numpy as np
    from mmengine.config import ConfigDict
    from mmengine.logging import HistoryBuffer

    model = towers(mask_layers=1)
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    hub = {
        "log_scalars": {"loss": HistoryBuffer([1.0, 2.0], [1, 1])},
        "runtime_info": {"x": np.float64(3.0), "cfg": ConfigDict(a=1)},
    }
    torch.save(
        {"meta": {"tower_config": model.config.to_dict(), "iter": 5}, "message_hub": hub, "state_dict": state},
        tmp_path / "iter_5.pth",
    )
    read = read_checkpoint(tmp_path / "iter_5.pth")
    assert equal(read.state, model.openai_state())
    assert read.config == model.config


def test_stretching_a_short_checkpoint(tmp_path):
    path = towers().save(tmp_path / "short.pt")
    long = SmartCLIP.from_checkpoint(path, stretch=True)
    assert long.config.context_length == 248
    assert len(long.openai_state()) == len(towers().openai_state()) + 1


def test_bare_files_refuse_what_they_cannot_carry(tmp_path):
    with pytest.raises(UserError, match="vision_heads=2"):
        SmartCLIP.from_arch("SmartCLIP-tiny").save(tmp_path / "w.pt")
    with pytest.raises(UserError, match="mask_pad='ignore'"):
        towers(mask_layers=1).save(tmp_path / "w.pt")
    SmartCLIP.from_arch("SmartCLIP-tiny").save(tmp_path / "w.pt", layout="native")
    assert SmartCLIP.from_checkpoint(tmp_path / "w.pt").config == SmartCLIP.from_arch("SmartCLIP-tiny").config


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (1024, 16), (1280, 16), (1664, 16)])
def test_heads_of_published_widths(width, heads):
    from smartclip_det.models.towers.layouts import infer_config

    state = {
        "visual.conv1.weight": torch.zeros(width, 3, 14, 14),
        "visual.positional_embedding": torch.zeros(257, width),
        "visual.proj": torch.zeros(width, 8),
        "text_projection": torch.zeros(64, 8),
        "ln_final.weight": torch.zeros(64),
        "token_embedding.weight": torch.zeros(9, 64),
        "positional_embedding": torch.zeros(77, 64),
    }
    assert infer_config(state, "here").vision_heads == heads
    with pytest.raises(UserError, match="text_projection has 1 axes"):
        infer_config({**state, "text_projection": torch.zeros(8)}, "here")


class TestErrors:
    def test_missing_file(self, tmp_path):
        with pytest.raises(UserError, match="No checkpoint at"):
            read_checkpoint(tmp_path / "none.pt")

    @pytest.mark.parametrize("content", [b"PK\x03\x04" + b"x" * 200, bytes(range(256)) * 20, b""])
    def test_rubbish(self, tmp_path, content):
        (tmp_path / "w.pt").write_bytes(content)
        with pytest.raises(UserError):
            read_checkpoint(tmp_path / "w.pt")

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_truncated(self, tmp_path, suffix):
        path = towers().save(tmp_path / f"w{suffix}")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UserError, match="cut short"):
            read_checkpoint(path)

    def test_lost_tensors(self, tmp_path):
        state = towers().openai_state()
        del state["visual.transformer.resblocks.1.ln_2.weight"]
        torch.save(state, tmp_path / "w.pt")
        with pytest.raises(UserError, match=r"lacks 1 of \d+ tensors: visual.transformer.resblocks.1.ln_2.weight"):
            read_checkpoint(tmp_path / "w.pt")

    def test_wrong_shape(self, tmp_path):
        state = towers().openai_state()
        state["visual.ln_post.weight"] = torch.ones(3)
        torch.save(state, tmp_path / "w.pt")
        with pytest.raises(UserError, match=r"visual.ln_post.weight is \[3\], expected \[64\]"):
            read_checkpoint(tmp_path / "w.pt")

    def test_a_prefix_is_found_and_foreign_keys_are_reported(self, tmp_path, caplog):
        state = {f"clip.{k}": v for k, v in towers().openai_state().items()}
        state["decoder.weight"] = torch.ones(1)
        state["clip.head.weight"] = torch.ones(1)
        torch.save(state, tmp_path / "w.pt")
        read = read_checkpoint(tmp_path / "w.pt")
        assert read.unmatched == ["decoder.weight", "head.weight"]
        assert "decoder.weight" in caplog.text

    def test_mixed_layouts(self, tmp_path):
        state = towers().openai_state()
        torch.save({**state, **to_huggingface(state)}, tmp_path / "w.pt")
        with pytest.raises(UserError, match="mixes the layouts huggingface, openai"):
            read_checkpoint(tmp_path / "w.pt")

    @pytest.mark.parametrize(
        ("key", "message"),
        [
            ("layer1.0.conv1.weight", "0 keys matched"),
            ("visual.attnpool.k_proj.weight", "ResNet CLIP"),
            ("visual.trunk.blocks.0.w", "timm tower"),
            ("backbone.image_tower.conv1.weight", "lacks|not a complete"),
        ],
    )
    def test_foreign_networks(self, tmp_path, key, message):
        torch.save({key: torch.ones(4, 3, 2, 2)}, tmp_path / "w.pt")
        with pytest.raises(UserError, match=message):
            read_checkpoint(tmp_path / "w.pt")

    def test_pickled_objects_are_refused_and_do_not_run(self, tmp_path):
        marker = tmp_path / "ran"

        class Evil:
            def __reduce__(self):
                return (open, (str(marker), "w"))

        torch.save({"state_dict": {"w": torch.ones(1)}, "evil": Evil()}, tmp_path / "w.pt")
        (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
        torch.save(towers(), tmp_path / "module.pt")
        for name in ("w.pt", "plain.pt", "module.pt"):
            with pytest.raises(UserError, match="could run code|not a torch file|not a readable"):
                read_checkpoint(tmp_path / name)
        assert not marker.exists()

    def test_no_tensors_and_no_dict(self, tmp_path):
        torch.save({"epoch": 1}, tmp_path / "a.pt")
        torch.save([1, 2], tmp_path / "b.pt")
        with pytest.raises(UserError, match="no tensors"):
            read_checkpoint(tmp_path / "a.pt")
        with pytest.raises(UserError, match="contains a list"):
            read_checkpoint(tmp_path / "b.pt")
        (tmp_path / "text.pt").write_text("hello")
        with pytest.raises(UserError, match="not a torch file|not a readable"):
            safe_torch_load(tmp_path / "text.pt")

    def test_a_known_activation_cannot_be_overruled(self, tmp_path):
        path = towers(activation="gelu").save(tmp_path / "w.safetensors")
        with pytest.raises(UserError, match="activation='gelu'"):
            read_checkpoint(path, activation="quick_gelu")


class TestReadings:
    """A file that can be read in more than one way is reported."""

    @pytest.fixture
    def two(self):
        first, second = towers().openai_state(), towers().openai_state()
        second["ln_final.weight"] = second["ln_final.weight"] + 1
        return first, second

    @pytest.mark.parametrize(
        ("wrap", "names"),
        [
            (lambda a, b: {"model": a, "ema": b}, "model, ema"),
            (
                lambda a, b: {"state_dict": a, "ema_state_dict": b, "epoch": 1, "name": "x"},
                "state_dict, ema_state_dict",
            ),
            (lambda a, b: {"model": {"student": a, "teacher": b}}, "model.student, model.teacher"),
            (lambda a, b: {**a, "ema": b}, "top, ema"),
            (lambda a, b: {f"{p}.{k}": v for p, s in (("q", a), ("k", b)) for k, v in s.items()}, "q, k"),
            (lambda a, b: {**a, **{f"ema.{k}": v for k, v in b.items()}}, "top, ema"),
            (
                lambda a, b: {
                    "m": {f"module.{k}": v for k, v in a.items()},
                    "ema": {f"module.{k}": v for k, v in b.items()},
                },
                "m, ema",
            ),
            (lambda a, b: {"model": a, "ema": to_huggingface(b)}, "model, ema"),
        ],
    )
    def test_each_is_named_and_read_when_asked_for(self, tmp_path, two, wrap, names):
        torch.save(wrap(*two), tmp_path / "w.pt")
        with pytest.raises(UserError, match=f"2 different sets of weights: {names}. Choose one with reading="):
            read_checkpoint(tmp_path / "w.pt")
        for name, expected in zip(names.split(", "), two, strict=True):
            found = read_checkpoint(tmp_path / "w.pt", reading=name)
            assert equal(found.state, expected)
            assert found.reading == name
            short = SmartCLIP.from_checkpoint(tmp_path / "w.pt", reading=name.split(".")[-1])
            assert equal(short.openai_state(), expected)
        with pytest.raises(UserError, match=f"has no weights 'swa'.*{names}"):
            read_checkpoint(tmp_path / "w.pt", reading="swa")

    def test_the_same_weights_twice_are_one_reading(self, tmp_path, two):
        torch.save(
            {"model": two[0], "state_dict": dict(two[0]), "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
            tmp_path / "w.pt",
        )
        assert equal(read_checkpoint(tmp_path / "w.pt").state, two[0])

    def test_an_image_tower_beside_a_whole_is_another_reading(self, tmp_path, two):
        tower = {k.removeprefix("visual."): v for k, v in two[1].items() if k.startswith("visual.")}
        torch.save({"model": two[0], "visual": tower}, tmp_path / "w.pt")
        with pytest.raises(UserError, match="2 different sets.*model, visual"):
            read_checkpoint(tmp_path / "w.pt")
        assert equal(read_checkpoint(tmp_path / "w.pt", reading="model").state, two[0])
        with pytest.raises(UserError, match="not a complete CLIP checkpoint"):
            read_checkpoint(tmp_path / "w.pt", reading="visual")


class TestTensorsWithoutAPlace:
    @pytest.mark.parametrize(
        "key",
        [
            "visual.transformer.resblocks.0.ls_1.gamma",
            "transformer.resblocks.1.attn.ln.weight",
            "visual.head.bias",
            "visual.attn_pool.query",
            "text.cls_emb",
            "visual.ln_extra.weight",
            "text_projection.bias",
            "visual.conv1.bias",
        ],
    )
    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_of_a_tower_are_refused(self, tmp_path, key, prefix):
        state = {f"{prefix}{k}": v for k, v in {**towers().openai_state(), key: torch.ones(1)}.items()}
        torch.save(state, tmp_path / "w.pt")
        with pytest.raises(UserError, match=f"these towers do not have.*{key}"):
            read_checkpoint(tmp_path / "w.pt")

    def test_of_a_tower_are_refused_in_other_layouts(self, tmp_path):
        state = towers().openai_state()
        torch.save({**to_huggingface(state), "visual_projection.bias": torch.ones(64)}, tmp_path / "hf.pt")
        torch.save(
            {**{to_native(k): v for k, v in state.items()}, "text_tower.extra": torch.ones(1)}, tmp_path / "n.pt"
        )
        for name, key in (("hf.pt", "visual_projection.bias"), ("n.pt", "text_tower.extra")):
            with pytest.raises(UserError, match=f"these towers do not have.*{key}"):
                read_checkpoint(tmp_path / name)

    def test_sizes_and_masks_that_tensors_tell_anyway_are_no_noise(self, tmp_path, caplog):
        state = towers().openai_state()
        custom = {k if k.startswith(("visual", "logit")) else f"text.{k}": v for k, v in state.items()}
        torch.save(
            {**custom, "text.attn_mask": torch.ones(2), "visual.input_resolution": torch.tensor(32)}, tmp_path / "w.pt"
        )
        read = read_checkpoint(tmp_path / "w.pt", activation="quick_gelu")
        assert equal(read.state, state)
        assert not caplog.text


@pytest.mark.parametrize("scale", [torch.tensor([3.0]), torch.tensor([[3.0]]), torch.tensor(3.0), None])
def test_the_scale_is_one_number_or_none(tmp_path, scale):
    state = towers().openai_state()
    del state["logit_scale"]
    torch.save(state if scale is None else {**state, "logit_scale": scale}, tmp_path / "w.pt")
    found = read_checkpoint(tmp_path / "w.pt").state["logit_scale"]
    assert found.shape == ()
    assert found.item() == pytest.approx(2.6592, abs=1e-4) if scale is None else found == 3
    torch.save({**state, "logit_scale": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="logit_scale is \\[2\\]"):
        read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: "null", "config is null, not an object"),
        (lambda c: "[]", "not an object"),
        (lambda c: "{", "not valid JSON"),
        (lambda c: "", "not valid JSON"),
        (lambda c: {k: v for k, v in c.items() if k != "activation"}, "lacks activation"),
        (lambda c: {}, "lacks activation, vision_heads"),
        (lambda c: {**c, "activation": "relu"}, "activation='relu'"),
        (lambda c: {**c, "embed_dim": "64"}, "embed_dim"),
        (lambda c: {**c, "vision_layers": 10**9}, "vision_layers=1000000000"),
        (lambda c: {**c, "vision_heads": None}, "vision_heads must be"),
        (lambda c: {**c, "vision_heads": 0}, "0 heads"),
        (lambda c: {**c, "new_key": 1}, "Unknown tower key 'new_key'"),
        (lambda c: {**c, "stretched": "no"}, "stretched"),
    ],
)
def test_broken_headers_of_our_own_files(tmp_path, change, message):
    model = towers()
    told = change(model.config.to_dict())
    header = {"format": "smartclip_det.towers/1", "config": told if isinstance(told, str) else json.dumps(told)}
    save_file(model.openai_state(), tmp_path / "w.safetensors", metadata=header)
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path / "w.safetensors")
    if not isinstance(told, str):
        torch.save({"meta": {"tower_config": told}, "state_dict": model.openai_state()}, tmp_path / "w.pth")
        with pytest.raises(UserError, match=message):
            read_checkpoint(tmp_path / "w.pth")
    torch.save({"meta": {"tower_config": None}, "state_dict": model.openai_state()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="tower_config"):
        read_checkpoint(tmp_path / "w.pth")
    save_file(model.openai_state(), tmp_path / "w.safetensors", metadata={"format": "smartclip_det.towers/1"})
    with pytest.raises(UserError, match="not valid JSON"):
        read_checkpoint(tmp_path / "w.safetensors")
