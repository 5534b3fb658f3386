"""Weights by name, with the real clients, from a loopback server with random weights."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from torchvision.models import get_model

from smartclip_det import Predictor
from smartclip_det.core.errors import UserError
from smartclip_det.models.boxes import rpn
from smartclip_det.models.towers import SmartCLIP, TowerConfig
from smartclip_det.models.towers.source import load_encoder, load_towers, resolve_encoder
from smartclip_det.models.towers.tokenizer import open_clip_names, open_clip_pretrained
from smartclip_det.models.zoo import cached_path, fetch, find, registry
from smartclip_det.models.zoo.listing import weights_facts, weights_rows
from smartclip_det.utils import notes
from tests.conftest import REPO
from tests.documented import blocks
from tests.loopback import COMMIT, Loopback, Repository, sha

PLAIN = TowerConfig(
    embed_dim=64,
    image_size=32,
    patch_size=16,
    vision_width=64,
    vision_layers=1,
    vision_heads=1,
    text_width=64,
    text_layers=1,
    text_heads=1,
)
SMART = PLAIN.with_(context_length=248, stretched=True, mask_layers=1, mask_pad="include")
NAME, FILE = "smartclip-b16", "smartclip_b16.pt"


@pytest.fixture(scope="module")
def towers():
    """One of each layout, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {"smart": SmartCLIP(SMART).eval(), "plain": SmartCLIP(PLAIN).eval()}


@pytest.fixture(scope="module")
def server(towers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    towers["smart"].save(folder / FILE)
    towers["plain"].save(folder / "clip", layout="open_clip")
    towers["plain"].save(folder / "hf", layout="huggingface")
    smart = (folder / FILE).read_bytes()
    clip = {p.name: p.read_bytes() for p in (folder / "clip").iterdir()}
    hf = {p.name: p.read_bytes() for p in (folder / "hf").iterdir()}
    loopback = Loopback()
    pinned = registry()["clip-b32"].sources[0].revision
    loopback.repositories = {
        "Shaoan/SmartCLIP": Repository({FILE: smart}),
        "BeichenZhang/LongCLIP-L": Repository(
            {"longclip-L.pt": smart}, commit=registry()["longclip-l14"].sources[0].revision
        ),
        "timm/vit_base_patch32_clip_224.openai": Repository(clip, commit=pinned),
        "someone/clip": Repository({**hf, "README.md": b"hello"}),
        "someone/two": Repository({"a.pt": smart, "b.pt": smart}),
        "someone/gated": Repository({FILE: smart}, gated=True),
    }
    loopback.files = {"/models/ViT-B-16.pt": smart}
    yield loopback
    loopback.close()


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """The loopback server as hub, with empty caches and without the client's pauses between retries."""
    server.reset()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(notes, "_printed", set())
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setenv("SMARTCLIP_DET_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch" / "hub"))
    return server


def nothing_listens(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )


def records(tmp_path):
    return json.loads((tmp_path / "ours" / "weights.json").read_text())


class TestFirstAndLaterUse:
    def test_a_name_gives_the_towers_of_the_file_and_says_what_comes_from_where(self, hub, towers, tmp_path, capsys):
        model = SmartCLIP.from_pretrained(NAME)
        assert model.checkpoint_hash == towers["smart"].checkpoint_hash
        assert not model.training
        told = capsys.readouterr().err
        size = len(hub.repositories["Shaoan/SmartCLIP"].files[FILE])
        for part in (
            NAME,
            f"{size / 1e6:,.1f} MB",
            f"{hub.url}/Shaoan/SmartCLIP",
            FILE,
            "licence not stated",
            str(tmp_path / "hub"),
        ):
            assert part in told
        ((key, record),) = records(tmp_path).items()
        assert key == f"Shaoan/SmartCLIP/{COMMIT}/{FILE}"
        assert record["sha256"] == sha(hub.repositories["Shaoan/SmartCLIP"].files[FILE])

    def test_a_predictor_by_name_answers_about_an_image(self, hub, towers):
        predictor = Predictor.from_pretrained(NAME, boxes=None, device="cpu", use_cache=False, parser="rules")
        assert predictor.encoder.checkpoint_hash == towers["smart"].checkpoint_hash
        predictor.set_image(np.zeros((64, 96, 3), dtype=np.uint8), boxes=[[0, 0, 40, 40], [50, 10, 96, 64]])
        assert len(predictor.detect(["red mug", "left dog"])) == 4
        with pytest.raises(UserError, match="smartclip-b16"):
            Predictor.from_pretrained("smartclip-b61", boxes=None)

    @pytest.mark.parametrize("page", ["README.md", "docs/own-photographs.md", "docs/tasks/ground.md"])
    def test_the_first_lines_of_a_page(self, hub, tmp_path, monkeypatch, page):
        """The lines run as printed, on two photographs."""
        block = blocks(REPO / page, "python")[0]
        assert 'from_pretrained("smartclip-b16"' in block
        boxes = get_model(rpn.DEFAULT_MODEL, weights=None, weights_backbone=None).state_dict()
        monkeypatch.setattr(rpn, "safe_url_load", lambda url, **options: boxes)
        pixels = np.random.default_rng(0).integers(0, 255, (256, 320, 3), dtype=np.uint8)
        (tmp_path / "photos").mkdir()
        for path in ("photo.jpg", "photos/1.jpg", "photos/2.jpg"):
            Image.fromarray(pixels).save(tmp_path / path)
        monkeypatch.chdir(tmp_path)
        exec(compile(block, page, "exec"), {})
        for path in re.findall(r'save\("(.+?)"\)', block):
            assert Image.open(tmp_path / path).size == (320, 256)
        assert any(FILE in path for path, _ in hub.asked())

    def test_what_is_here_is_used_without_a_word_and_without_the_network(self, hub, towers, monkeypatch, capsys):
        SmartCLIP.from_pretrained(NAME)
        before = len(hub.requests)
        capsys.readouterr()
        assert load_towers({"checkpoint": NAME}).checkpoint_hash == towers["smart"].checkpoint_hash
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert load_encoder({"checkpoint": NAME}).checkpoint_hash == towers["smart"].checkpoint_hash
        assert len(hub.requests) == before
        assert "downloading" not in "".join(capsys.readouterr())

    def test_open_clip_folders_come_with_the_config_that_tells_their_activation(self, hub, towers):
        path = fetch("clip-b32").path
        assert (path.parent / "open_clip_config.json").is_file()
        assert SmartCLIP.from_pretrained("clip-b32").checkpoint_hash == towers["plain"].checkpoint_hash
        assert SmartCLIP.from_pretrained("clip-b32").config.activation == "quick_gelu"

    def test_a_file_of_the_same_spelling_is_the_file(self, hub, towers, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        towers["smart"].save(tmp_path / "own.safetensors").rename(tmp_path / NAME)
        assert resolve_encoder(NAME) == {"checkpoint": NAME}
        assert hub.requests == []

    def test_any_repository_of_the_hub(self, hub, towers, tmp_path, monkeypatch, capsys):
        model = SmartCLIP.from_pretrained("hf-hub:someone/clip")
        assert model.checkpoint_hash == towers["plain"].checkpoint_hash
        assert "model.safetensors" in capsys.readouterr().err
        assert "README.md" not in str(hub.asked())
        assert fetch("hf-hub:someone/two/b.pt").path.name == "b.pt"
        assert fetch(f"hf-hub:someone/two@{COMMIT}/b.pt").path.name == "b.pt"
        for break_network in (nothing_listens, lambda m: m.setattr(constants, "HF_HUB_OFFLINE", True)):
            break_network(monkeypatch)
            assert SmartCLIP.from_pretrained("hf-hub:someone/clip").checkpoint_hash == model.checkpoint_hash

    def test_where_the_hub_has_nothing_the_original_address_is_asked(self, hub, towers, monkeypatch, tmp_path):
        entry = registry()["clip-b16"]
        content = hub.files["/models/ViT-B-16.pt"]
        address = replace(entry.sources[1], address=f"{hub.url}/models/ViT-B-16.pt", sha256=sha(content))
        monkeypatch.setitem(registry(), "clip-b16", replace(entry, sources=(entry.sources[0], address)))
        assert SmartCLIP.from_pretrained("clip-b16").checkpoint_hash == towers["smart"].checkpoint_hash
        assert cached_path(address) == tmp_path / "torch" / "hub" / "checkpoints" / "ViT-B-16.pt"
        wrong = replace(address, sha256="0" * 64, address=f"{hub.url}/models/ViT-B-16.pt?other")
        monkeypatch.setitem(registry(), "clip-b16", replace(entry, sources=(wrong,)))
        with pytest.raises(UserError, match="does not match its published hash"):
            fetch("clip-b16")
        assert cached_path(wrong) is None

    def test_from_the_command_line_and_by_configs(self, hub, tmp_path):
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(REPO)}
        (tmp_path / "names.txt").write_text("cat\ndog\n")
        command = [
            "-m",
            "smartclip_det",
            "encode-texts",
            "--vocabulary",
            str(tmp_path / "names.txt"),
            "--encoder",
            NAME,
            "--out",
            str(tmp_path / "bank.safetensors"),
        ]
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, done.stderr
        assert f"note: {NAME}: downloading" in done.stderr
        listed = subprocess.run(
            [sys.executable, "-m", "smartclip_det", "models", "--json"],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            check=True,
        )
        here = [r["name"] for r in json.loads(listed.stdout) if r["cached"]]
        assert here == [NAME]


class TestWhatStopsADownload:
    def told(self, name=NAME):
        with pytest.raises(UserError) as error:
            SmartCLIP.from_pretrained(name)
        assert "\n" not in str(error.value)
        return str(error.value)

    def test_offline_without_cache(self, hub, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        told = self.told()
        assert "HF_HUB_OFFLINE" in told
        assert constants.HF_HUB_CACHE in told
        assert "HF_HUB_OFFLINE" in self.told("hf-hub:someone/clip")
        assert hub.requests == []

    def test_no_network_and_no_cache(self, hub, monkeypatch):
        nothing_listens(monkeypatch)
        assert "http://127.0.0.1:9 does not answer" in self.told()

    def test_a_cut_connection_is_resumed_where_it_broke(self, hub, towers):
        hub.cuts[FILE] = [11_000_000, 1_000_000]
        assert SmartCLIP.from_pretrained(NAME).checkpoint_hash == towers["smart"].checkpoint_hash
        ranges = [r for p, r in hub.asked() if p.startswith("/cdn/")]
        # The client writes chunks of 10 MiB, and resumes after the last complete one.
        assert ranges == [None, *2 * ["bytes=10485760-"]]

    def test_a_connection_that_breaks_for_good_leaves_nothing_half(self, hub, tmp_path, towers):
        hub.cuts[FILE] = [1_000_000, *[0] * 20]
        told = self.told()
        assert "was interrupted" in told
        assert "Run the same command again" in told
        assert list((tmp_path / "hub").rglob("*.incomplete")) == []
        hub.reset()
        assert SmartCLIP.from_pretrained(NAME).checkpoint_hash == towers["smart"].checkpoint_hash

    def test_contents_that_are_not_what_the_hub_says_are_refused_and_removed(self, hub, towers):
        true = hub.repositories["Shaoan/SmartCLIP"].files[FILE]
        hub.lies[FILE] = true[:-1] + bytes([true[-1] ^ 1])
        told = self.told()
        assert sha(hub.lies[FILE]) in told
        assert sha(true) in told
        hub.reset()
        assert SmartCLIP.from_pretrained(NAME).checkpoint_hash == towers["smart"].checkpoint_hash

    def test_a_published_hash_holds_against_the_hub_itself(self, hub):
        told = self.told("longclip-l14")
        assert registry()["longclip-l14"].sources[0].sha256 in told
        assert "removed" in told
        assert cached_path(registry()["longclip-l14"].sources[0]) is None

    def test_a_file_that_changed_on_the_disk(self, hub, tmp_path):
        path = fetch(NAME).path
        with path.open("r+b") as handle:
            handle.seek(-1, os.SEEK_END)
            handle.write(b"\xff")
        assert f"Remove {path}" in self.told()
        assert path.is_file()

    def test_a_missing_file_and_a_missing_repository(self, hub):
        told = self.told("smartclip-l14")
        assert "no file 'smartclip_l14.pt'" in told
        assert f"{hub.url}/Shaoan/SmartCLIP/tree/main" in told
        assert "There is no repository" in self.told("hf-hub:nobody/nothing")
        assert "no revision 'v9'" in self.told("hf-hub:someone/two@v9/a.pt")
        assert "2 weight files (a.pt, b.pt)" in self.told("hf-hub:someone/two")

    def test_a_gated_repository(self, hub, monkeypatch):
        told = self.told("hf-hub:someone/gated")
        for part in ("gated", f"{hub.url}/someone/gated", "HF_TOKEN", "hf auth login"):
            assert part in told
        monkeypatch.setenv("HF_TOKEN", "hf_allowed")
        assert fetch("hf-hub:someone/gated").path.is_file()

    def test_no_space_is_told_before_a_byte_comes(self, hub, monkeypatch, tmp_path):
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5_000_000))
        told = self.told()
        assert "5.0 MB free" in told
        assert [p for p, _ in hub.asked() if p.startswith("/cdn/")] == []

    def test_a_disk_that_fills_on_the_way(self, hub, tmp_path):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))
        try:
            told = self.told()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "The disk is full" in told
        assert list((tmp_path / "hub").rglob("*.incomplete")) == []


class TestNames:
    @pytest.mark.parametrize(
        ("given", "near"),
        [("smartclip-b-16", "smartclip-b16"), ("Long-CLIP-B16", "longclip-b16"), ("siglip2-b", "siglip2-b16")],
    )
    def test_a_typo_gives_the_nearest_names(self, given, near):
        for call in (SmartCLIP.from_pretrained, find, lambda n: load_encoder({"checkpoint": n})):
            with pytest.raises(UserError, match=f"Nearest: .*{near}"):
                call(given)

    @pytest.mark.parametrize(
        "given", ["smartclip_b16.pt", "models/none.safetensors", "./smartclip-b16", "/nowhere/clip"]
    )
    def test_a_path_to_nothing_is_no_typo_of_a_name(self, given):
        with pytest.raises(UserError, match=f"No checkpoint at {given}"):
            SmartCLIP.from_pretrained(given)

    def test_a_name_where_a_file_is_read(self):
        with pytest.raises(UserError, match=r"is a name: SmartCLIP.from_pretrained"):
            SmartCLIP.from_checkpoint("clip-b16")

    @pytest.mark.parametrize("given", ["hf-hub:", "hf-hub:one", "hf-hub:a b/c", "hf-hub:../../etc"])
    def test_hub_names_that_are_none(self, given, hub):
        with pytest.raises(UserError, match="repository"):
            fetch(given)
        assert hub.requests == [] or given == "hf-hub:../../etc"

    def test_a_file_where_a_name_is_meant(self, tmp_path):
        (tmp_path / "w.pt").write_bytes(b"x")
        with pytest.raises(UserError, match="is a file, not a name"):
            weights_facts(str(tmp_path / "w.pt"))

    def test_other_families_stand_in_no_detector(self, hub, monkeypatch):
        monkeypatch.setattr("smartclip_det.models.towers.source.fetch", lambda name: fetch_of(name))

        def fetch_of(name):
            from smartclip_det.models.zoo import Fetched

            return Fetched(Path("/w.safetensors"), find(name), "0" * 64)

        assert resolve_encoder("eva02-b16") == {"checkpoint": "/w.safetensors", "open_clip": "EVA02-B-16"}
        with pytest.raises(UserError, match="the open_clip model EVA02-B-16"):
            load_towers({"checkpoint": "eva02-b16"})
        with pytest.raises(UserError, match="has weights of EVA02-B-16, not ViT-B-16-SigLIP"):
            load_encoder({"open_clip": "ViT-B-16-SigLIP", "checkpoint": "eva02-b16"})


class TestRegistry:
    def test_it_says_what_open_clips_table_says(self):
        for weights in registry().values():
            if not weights.open_clip:
                continue
            model, _, tag = weights.open_clip.partition("/")
            told = open_clip_pretrained(model)[tag]
            assert told["hf_hub"].rstrip("/") == weights.sources[0].hub, weights.name
            assert told["timm"] == (weights.kind == "open_clip"), weights.name
            if weights.kind == "towers":
                assert bool(told.get("quick_gelu")) == (weights.activation == "quick_gelu"), weights.name
            for source in weights.sources[1:]:
                assert source.address == told["url"]
                assert source.sha256 == source.address.split("/")[-2]

    def test_sizes_are_those_of_open_clips_configs(self):
        from open_clip import get_model_config

        for weights in registry().values():
            if weights.open_clip:
                config = get_model_config(weights.open_clip_model)
                assert config["vision_cfg"]["image_size"] == weights.image_size, weights.name
                assert config["text_cfg"]["context_length"] == weights.context_length, weights.name

    def test_every_entry_is_whole(self):
        for weights in registry().values():
            assert weights.kind in ("towers", "open_clip")
            assert weights.kind == "towers" or weights.open_clip
            assert bool(weights.published) == bool(weights.published_source)
            for source in weights.sources:
                assert source.sha256 is None or len(source.sha256) == 64
                assert source.revision is None or len(source.revision) == 40
                assert bool(source.hub) != bool(source.address)

    def test_open_clip_names_beyond_the_registry(self):
        found = find("open_clip:ViT-B-32/datacomp_xl_s13b_b90k")
        assert (found.kind, found.sources[0].hub) == ("towers", "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K")
        assert find("open_clip:ViT-L-16-SigLIP-256/webli").kind == "open_clip"
        with pytest.raises(UserError, match="Nearest: ViT-B-32"):
            find("open_clip:ViT-B32/openai")
        with pytest.raises(UserError, match="no weights 'laion9b' for ViT-B-32. It has: openai"):
            find("open_clip:ViT-B-32/laion9b")
        with pytest.raises(UserError, match="several weights for ViT-B-32"):
            find("open_clip:ViT-B-32")
        every = weights_rows(every=True)
        assert len(every) > 100 + len(registry())
        assert len({r["name"] for r in every}) == len(every)
        assert "ViT-B-32" in open_clip_names()


class TestVerify:
    def test_a_file_that_is_not_what_its_name_says(self, hub):
        from smartclip_det.apis.weights import VerifyWeightsOptions, verify_weights

        with pytest.raises(
            UserError, match="does not match the registry entry of smartclip-b16: image_size 32, but 224"
        ):
            verify_weights(VerifyWeightsOptions(NAME))

    def test_hash_and_sizes(self, hub, towers, monkeypatch):
        monkeypatch.setitem(registry(), NAME, replace(registry()[NAME], image_size=32))
        from smartclip_det.apis.weights import VerifyWeightsOptions, verify_weights

        passed, facts, rows = verify_weights(VerifyWeightsOptions(NAME))
        assert passed
        assert facts["checkpoint_hash"] == towers["smart"].checkpoint_hash
        assert (facts["context_length"], facts["activation"], rows) == (248, "quick_gelu", [])
