from __future__ import annotations

import json
import pickle

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from smartclip_det.core.errors import UserError
from smartclip_det.models.towers import SmartCLIP, TowerConfig, read_checkpoint
from smartclip_det.models.towers.layouts import to_huggingface
from smartclip_det.utils.safe_load import safe_torch_load

TINY = TowerConfig(embed_dim=64, image_size=32, patch_size=16, vision_width=64, vision_layers=2, vision_heads=1,
                   text_width=64, text_layers=2, text_heads=1, vocab_size=49408)  # fmt: skip


def towers(**changes) -> SmartCLIP:
    torch.manual_seed(0)
    return SmartCLIP(TINY.with_(**changes)).eval()


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("layout", ["openai", "native"])
@pytest.mark.parametrize("kind", [{}, {"context_length": 248, "stretched": True},
                                  {"context_length": 248, "stretched": True, "mask_layers": 1, "mask_pad": "include"}])  # fmt: skip
def test_round_trips_are_exact(tmp_path, suffix, layout, kind):
    model = towers(**kind)
    path = model.save(tmp_path / f"w{suffix}", layout=layout)
    assert not list(tmp_path.glob("*.part"))
    loaded = SmartCLIP.from_checkpoint(path)
    assert equal(loaded.openai_state(), model.openai_state())
    assert loaded.config == model.config
    assert loaded.checkpoint_hash == model.checkpoint_hash


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


def test_torchscript_archive_is_read_and_its_sizes_are_no_noise(tmp_path):
    model = towers()

    class Archive(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("input_resolution", torch.tensor(32))
            self.register_buffer("context_length", torch.tensor(77))
            self.register_buffer("vocab_size", torch.tensor(49408))

        def forward(self, x):
            raise RuntimeError("must never be called")

    archive = Archive()
    for name, value in model.openai_state().items():
        parent = archive
        *path, leaf = name.split(".")
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, torch.nn.Module())
            parent = getattr(parent, part)
        parent.register_parameter(leaf, torch.nn.Parameter(value.half() if value.dim() > 1 else value))
    torch.jit.save(torch.jit.script(archive), str(tmp_path / "jit.pt"))
    read = read_checkpoint(tmp_path / "jit.pt")
    assert read.layout == "openai_jit"
    assert read.unmatched == []
    assert read.config.activation == "quick_gelu"
    assert all(v.dtype == torch.float32 for v in read.state.values())
    assert torch.allclose(read.state["visual.conv1.weight"], model.image_tower.conv1.weight, atol=1e-3)


def test_hugging_face_folder_and_file(tmp_path):
    model = towers(activation="gelu")
    tensors = to_huggingface(model.openai_state())
    assert "vision_model.encoder.layers.1.self_attn.q_proj.bias" in tensors
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {"hidden_act": "gelu", "num_attention_heads": 1},
                                                      "text_config": {"num_attention_heads": 1}}))  # fmt: skip
    folder = SmartCLIP.from_checkpoint(tmp_path)
    assert equal(folder.openai_state(), model.openai_state())
    assert folder.config.activation == "gelu"
    file = read_checkpoint(tmp_path / "model.safetensors", activation="gelu")
    assert equal(file.state, model.openai_state())


def test_open_clip_training_checkpoint_with_module_prefix(tmp_path, caplog):
    oracle = open_clip.CLIP(embed_dim=64, vision_cfg={"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
                            text_cfg={"width": 64, "heads": 1, "layers": 2})  # fmt: skip
    state = {f"module.{k}": v for k, v in oracle.state_dict().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state}, tmp_path / "epoch_3.pt")
    model = SmartCLIP.from_checkpoint(tmp_path / "epoch_3.pt")
    assert model.config.activation == "gelu"
    assert "gelu is assumed" in caplog.text
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
    torch.save({"meta": {"tower_config": model.config.to_dict(), "iter": 5}, "message_hub": hub, "state_dict": state},
               tmp_path / "iter_5.pth")  # fmt: skip
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

    state = {"visual.conv1.weight": torch.zeros(width, 3, 14, 14), "visual.positional_embedding": torch.zeros(257, width),
             "visual.proj": torch.zeros(width, 8), "text_projection": torch.zeros(64, 8), "ln_final.weight": torch.zeros(64),
             "token_embedding.weight": torch.zeros(9, 64), "positional_embedding": torch.zeros(77, 64)}  # fmt: skip
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
        state["clip.visual.extra"] = torch.ones(1)
        torch.save(state, tmp_path / "w.pt")
        read = read_checkpoint(tmp_path / "w.pt")
        assert read.unmatched == ["decoder.weight", "visual.extra"]
        assert "decoder.weight" in caplog.text

    def test_mixed_layouts(self, tmp_path):
        state = towers().openai_state()
        torch.save({**state, **to_huggingface(state)}, tmp_path / "w.pt")
        with pytest.raises(UserError, match="mixes the layouts huggingface, openai"):
            read_checkpoint(tmp_path / "w.pt")

    @pytest.mark.parametrize(
        ("key", "message"),
        [("layer1.0.conv1.weight", "0 keys matched"), ("visual.attnpool.k_proj.weight", "ResNet CLIP"),
         ("visual.trunk.blocks.0.w", "timm tower"), ("backbone.image_tower.conv1.weight", "lacks|not a whole")],
    )  # fmt: skip
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
            with pytest.raises(UserError, match="could run code|no torch file|not a readable"):
                read_checkpoint(tmp_path / name)
        assert not marker.exists()

    def test_no_tensors_and_no_dict(self, tmp_path):
        torch.save({"epoch": 1}, tmp_path / "a.pt")
        torch.save([1, 2], tmp_path / "b.pt")
        with pytest.raises(UserError, match="no tensors"):
            read_checkpoint(tmp_path / "a.pt")
        with pytest.raises(UserError, match="holds a list"):
            read_checkpoint(tmp_path / "b.pt")
        (tmp_path / "text.pt").write_text("hello")
        with pytest.raises(UserError, match="no torch file|not a readable"):
            safe_torch_load(tmp_path / "text.pt")

    def test_a_known_activation_cannot_be_overruled(self, tmp_path):
        path = towers(activation="gelu").save(tmp_path / "w.safetensors")
        with pytest.raises(UserError, match="activation='gelu'"):
            read_checkpoint(path, activation="quick_gelu")
