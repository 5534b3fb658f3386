"""Hugging Face and open_clip folders, read and written; equal outputs in their own loaders."""

from __future__ import annotations

import json
import logging

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from smartclip_det.apis.converting import ConvertOptions, convert
from smartclip_det.core.errors import UserError
from smartclip_det.models.towers import SmartCLIP, read_checkpoint
from smartclip_det.models.towers.layouts import to_huggingface
from tests.models.test_checkpoints import equal, towers

transformers = pytest.importorskip("transformers")
TEXTS = ["a red mug", "two dogs on the left of a bench"]
KINDS = {
    "quick": {"vision_heads": 2, "text_heads": 4},
    "gelu": {"activation": "gelu"},
    "two": {"activation": "quick_gelu", "text_activation": "gelu"},
    "long": {"context_length": 248, "stretched": True, "vision_heads": 2},
}


def loud(**changes):
    """Towers far from initialisation, so that activations and positions matter."""
    model = towers(**changes)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.mul_(4.0 if value.dim() >= 2 and "embedding" not in name else 1.0)
        if model.text_tower.positional_embedding_res is not None:
            model.text_tower.positional_embedding_res.normal_()
    return model


def vectors(model):
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return pixels, model.tokenize(TEXTS), model.encode_image(pixels), model.encode_text(TEXTS).embeds


@pytest.mark.parametrize("kind", KINDS)
def test_hugging_face_folders_are_equal_in_its_own_loader(tmp_path, kind):
    model = loud(**KINDS[kind])
    model.save(tmp_path / "hf", layout="huggingface")
    peer = transformers.CLIPModel.from_pretrained(tmp_path / "hf").eval()
    pixels, tokens, images, texts = vectors(model)
    with torch.no_grad():
        seen = peer.visual_projection(peer.vision_model(pixel_values=pixels).pooler_output)
        read = peer.text_projection(peer.text_model(input_ids=tokens).pooler_output)
    assert torch.allclose(seen, images, atol=1e-5 * float(images.abs().max()))
    assert torch.allclose(functional.normalize(read, dim=-1), texts, atol=1e-5)
    again = SmartCLIP.from_checkpoint(tmp_path / "hf")
    assert again.config == model.config.with_(stretched=False)
    assert torch.equal(again.encode_text(TEXTS).embeds, texts)


@pytest.mark.parametrize("kind", ["quick", "gelu", "long"])
def test_open_clip_folders_are_equal_in_its_own_loader(tmp_path, kind):
    changes = {k: v for k, v in KINDS[kind].items() if k != "text_heads"}
    model = loud(**changes, text_heads=4)
    model.save(tmp_path / "oc", layout="open_clip")
    peer = open_clip.create_model(f"local-dir:{tmp_path / 'oc'}").eval()
    pixels, _, images, texts = vectors(model)
    tokens = open_clip.SimpleTokenizer(context_length=model.config.context_length)(TEXTS)
    with torch.no_grad():
        assert torch.allclose(peer.encode_image(pixels), images, atol=1e-5 * float(images.abs().max()))
        assert torch.allclose(peer.encode_text(tokens, normalize=True), texts, atol=1e-5)
    for given in ("oc", "oc/open_clip_model.safetensors"):
        again = SmartCLIP.from_checkpoint(tmp_path / given)
        assert again.config == model.config.with_(stretched=False)
        assert torch.equal(again.encode_image(pixels), images)


def test_what_peers_have_no_place_for_is_refused_or_left_out_on_purpose(tmp_path):
    with pytest.raises(UserError, match="one activation for both towers"):
        towers(text_activation="gelu").save(tmp_path / "oc", layout="open_clip")
    masked = towers(mask_layers=1)
    path = masked.save(tmp_path / "masked.safetensors")
    with pytest.raises(UserError, match="cannot store a mask network"):
        masked.save(tmp_path / "hf", layout="huggingface")
    told = "\n".join(convert(ConvertOptions(path, tmp_path / "hf", layout="huggingface", drop_masks=True)))
    assert "CLIPModel.from_pretrained" in told
    plain = SmartCLIP.from_checkpoint(tmp_path / "hf")
    assert torch.equal(plain.encode_text(TEXTS).embeds, masked.encode_text(TEXTS).embeds)


def test_convert_reads_back_what_it_wrote(tmp_path, monkeypatch):
    model = towers()
    torch.save(
        {
            "ema": model.openai_state(),
            "model": towers(activation="gelu").openai_state() | {"logit_scale": torch.tensor(1.0)},
        },
        tmp_path / "run.pt",
    )
    told = convert(ConvertOptions(tmp_path / "run.pt", tmp_path / "w.safetensors", activation="gelu", reading="ema"))
    assert "weights ema" in told[0]
    assert equal(read_checkpoint(tmp_path / "w.safetensors").state, model.openai_state())
    with pytest.raises(UserError, match=r"the suffix must be one of \.safetensors"):
        convert(ConvertOptions(tmp_path / "w.safetensors", tmp_path / "w.bin"))
    monkeypatch.setattr(SmartCLIP, "save", lambda *a, **k: None)
    (tmp_path / "v.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes())
    with pytest.raises(UserError, match="does not read back"):
        convert(ConvertOptions(tmp_path / "w.safetensors", tmp_path / "v.safetensors", stretch=True))


def write_hf(folder, model, **changes):
    model.save(folder, layout="huggingface")
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        side, _, name = key.partition("__")
        if name:
            config[side][name] = value
        else:
            config[side] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_shards_are_put_together_and_each_must_be_there(tmp_path):
    model = towers(activation="gelu")
    folder = write_hf(tmp_path / "hf", model)
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    files = {f"model-0000{n + 1}-of-00002.safetensors": names[n::2] for n in range(2)}
    for file, own in files.items():
        save_file({k: tensors[k] for k in own}, folder / file)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {k: f for f, own in files.items() for k in own}}))
    for given in (folder, index):
        read = read_checkpoint(given)
        assert equal(read.state, model.openai_state())
        assert read.config == model.config
    told = json.loads(index.read_text())
    for change, message in (
        ({"more": next(iter(files))}, "lack 1 tensors that it lists, e.g. more"),
        ({"more": "../secret.safetensors"}, "shards must be in the folder of their index"),
        ({"more": 3}, "lists the file 3"),
    ):
        index.write_text(json.dumps({"weight_map": {**told["weight_map"], **change}}))
        with pytest.raises(UserError, match=message):
            read_checkpoint(folder)
    index.write_text(json.dumps(told))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="a shard was not copied"):
        read_checkpoint(folder)
    for broken in ("[]", "{}", '{"weight_map": []}', "x"):
        index.write_text(broken)
        with pytest.raises(UserError, match=r"index\.json"):
            read_checkpoint(folder)


def test_the_config_beside_a_file_is_used(tmp_path):
    model = towers(activation="gelu", vision_heads=2)
    folder = write_hf(tmp_path / "hf", model)
    assert read_checkpoint(folder / "model.safetensors").config == model.config
    torch.save(to_huggingface(model.openai_state()), folder / "other.bin")
    assert read_checkpoint(folder / "other.bin").activation_known


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_config__hidden_act": "gelu_new"}, "text_config.hidden_act is 'gelu_new'"),
        ({"vision_config__layer_norm_eps": 1e-6}, "layer_norm_eps"),
        ({"vision_config__num_hidden_layers": 1}, "vision_layers=1, but the tensors have 2"),
        ({"vision_config__num_attention_heads": "two"}, "vision_heads must be a whole number"),
        ({"vision_config__num_attention_heads": 3}, "cannot be divided into 3 heads"),
        ({"model_type": "siglip"}, "'siglip' model"),
        ({"vision_config": [1]}, "vision_config is a list"),
    ],
)
def test_configs_of_hugging_face_that_say_otherwise_are_refused(tmp_path, change, message):
    folder = write_hf(tmp_path / "hf", towers(), **change)
    with pytest.raises(UserError, match=message):
        read_checkpoint(folder)


def test_old_and_silent_configs_of_hugging_face_are_read_as_it_reads_them(tmp_path):
    folder = write_hf(tmp_path / "hf", towers(), text_config_dict={"hidden_act": "gelu"}, vision_config=None)
    config = read_checkpoint(folder).config
    assert (config.activation, config.text_activation) == ("quick_gelu", "gelu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_cfg": {"ls_init_value": 0.1}}, r"vision_cfg.ls_init_value=0.1"),
        ({"vision_cfg": {"pool_type": "avg"}}, "pool_type='avg'"),
        ({"vision_cfg": {"attentional_pool": True}}, "attentional_pool=True"),
        ({"vision_cfg": {"timm_model_name": "vit"}}, "timm_model_name='vit'"),
        ({"text_cfg": {"pool_type": "last"}}, "text_cfg.pool_type='last'"),
        ({"text_cfg": {"no_causal_mask": True}}, "no_causal_mask=True"),
        ({"multimodal_cfg": {"width": 1}}, "multimodal_cfg"),
        ({"text_cfg": None}, None),
        ({"vision_cfg": {"patch_dropout": 0.5, "output_tokens": True}}, None),
    ],
)
def test_settings_of_open_clip_that_change_the_computation_are_refused(tmp_path, change, message):
    towers().save(tmp_path, layout="open_clip")
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    for key, value in change.items():
        old = config["model_cfg"].get(key)
        config["model_cfg"][key] = {**old, **value} if isinstance(old, dict) and value else value
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    if message is None:
        assert read_checkpoint(tmp_path).config == towers().config
    else:
        with pytest.raises(UserError, match=message):
            read_checkpoint(tmp_path)


def test_other_image_statistics_and_missing_configs_are_told(tmp_path, caplog):
    towers().save(tmp_path, layout="open_clip")
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.5, 0.5, 0.5]
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        read_checkpoint(tmp_path)
    assert "mean [0.5, 0.5, 0.5]" in caplog.text
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(UserError, match=r"no open_clip_config\.json"):
        read_checkpoint(tmp_path)
