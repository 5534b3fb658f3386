"""Malicious files, which try to execute code or exhaust memory: each gives one error and nothing else."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from smartclip_det.core.errors import UserError
from smartclip_det.models.towers import read_checkpoint
from smartclip_det.utils.safe_load import load_plain_pickle, safe_torch_load
from smartclip_det.utils.torchscript import activation_of, read_torchscript
from tests.models.test_checkpoints import equal, towers

TOWERS = {"vision": r"visual\b", "text": r"(transformer|text)\b"}


class Quick(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.act = activation

    def forward(self, x):
        return self.act(self.fc(x))


class Pair(nn.Module):
    """Modules named as in CLIP, half precision, a buffer, and an attribute that is not in the state dict."""

    def __init__(self, visual, text):
        super().__init__()
        self.visual = Block(visual)
        self.transformer = Block(text)
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.register_buffer("sizes", torch.arange(3))
        self.note = torch.ones(2)

    def forward(self, x):
        return self.visual(x) + self.transformer(x) * self.scale + self.note.sum()


class Restored(nn.Module):
    """Its ``__setstate__`` creates a file if ``torch.jit.load`` runs it."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self):
        return (self.path, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]):
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.ones(1), self.path)

    def forward(self, x):
        return x


@pytest.mark.parametrize("compile_", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(1, 4))])
@pytest.mark.parametrize("acts", [(Quick, Quick), (nn.GELU, nn.GELU), (Quick, nn.GELU), (nn.GELU, Quick)])
def test_an_archive_is_read_to_its_state_dict_and_tells_both_activations(tmp_path, compile_, acts):
    pair = Pair(acts[0](), acts[1]())
    pair.visual.fc.half()
    if compile_ is not torch.jit.script:
        pair.visual.fc.float()
    compile_(pair).save(str(tmp_path / "pair.pt"))
    archive = read_torchscript(tmp_path / "pair.pt")
    assert equal(archive.tensors, dict(torch.jit.load(tmp_path / "pair.pt").state_dict()))
    names = {Quick: {"quick_gelu"}, nn.GELU: {"gelu"}}
    assert activation_of(archive, TOWERS) == {"vision": names[acts[0]], "text": names[acts[1]]}


def test_gelu_by_tanh_is_told_apart(tmp_path):
    torch.jit.script(Pair(nn.GELU(approximate="tanh"), nn.GELU())).save(str(tmp_path / "pair.pt"))
    found = activation_of(read_torchscript(tmp_path / "pair.pt"), TOWERS)
    assert "gelu_tanh" in found["vision"]


def clip_archive(path, activation):
    """Towers with OpenAI's parameter names and a given activation in the MLPs."""
    model = towers(activation="gelu" if activation is nn.GELU else "quick_gelu")
    whole = nn.Module()
    for name, value in model.openai_state().items():
        parent = whole
        *folders, leaf = name.split(".")
        for part in folders:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.register_parameter(leaf, nn.Parameter(value.half() if value.dim() > 1 else value))
    for tower in (whole.visual, whole):
        for block in tower.transformer.resblocks.children():
            block.mlp.add_module("gelu", activation())
    for name in ("input_resolution", "context_length", "vocab_size"):
        whole.register_buffer(name, torch.tensor(32))
    torch.jit.script(whole).save(str(path))
    return model


@pytest.mark.parametrize("activation", [Quick, nn.GELU])
def test_openai_archives_are_read_by_what_their_code_says(tmp_path, activation):
    model = clip_archive(tmp_path / "jit.pt", activation)
    name = model.config.activation
    read = read_checkpoint(tmp_path / "jit.pt")
    assert (read.layout, read.unmatched, read.activation_known) == ("openai_jit", [], True)
    assert read.config == model.config
    assert all(torch.allclose(v, model.openai_state()[k], atol=1e-3) for k, v in read.state.items())
    assert read_checkpoint(tmp_path / "jit.pt", activation=name).config.activation == name
    with pytest.raises(UserError, match=f"has activation='{name}'"):
        read_checkpoint(tmp_path / "jit.pt", activation={"gelu": "quick_gelu", "quick_gelu": "gelu"}[name])


def test_an_archive_that_says_nothing_is_told_by_the_user(tmp_path, caplog):
    clip_archive(tmp_path / "jit.pt", nn.Identity)
    assert read_checkpoint(tmp_path / "jit.pt", activation="gelu").config.activation == "gelu"
    assert "assuming" not in caplog.text
    assert not read_checkpoint(tmp_path / "jit.pt").activation_known
    assert "assuming" in caplog.text


def test_nothing_of_an_archive_runs(tmp_path):
    marker = tmp_path / "ran.pt"
    torch.jit.script(Restored(str(marker))).save(str(tmp_path / "evil.pt"))
    marker.unlink(missing_ok=True)
    assert read_torchscript(tmp_path / "evil.pt").opaque == [""]
    with pytest.raises(UserError, match="by (code of )?their own.*which is not run"):
        read_checkpoint(tmp_path / "evil.pt")
    assert not marker.exists()
    torch.jit.load(str(tmp_path / "evil.pt"))
    assert marker.exists(), "the file would have been written: this test can fail"


def repacked(source, target, changes, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for info in old.infolist():
            content = old.read(info)
            for end, change in changes.items():
                if info.filename.endswith(end):
                    content = change(content)
            new.writestr(info.filename, content)
    return target


#: Opcodes that request far more data than there is, or that execute code.
HOSTILE = {
    "bytes of 2**60": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.",
    "text of 2**62": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "array of bytes of 2**35": b"\x80\x05\x96" + struct.pack("<Q", 2**35) + b"x.",
    "frame of 2**62": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"x.",
    "frame of 2**64 - 1": b"\x80\x04\x95" + b"\xff" * 8 + b"x.",
    "number of 2**31 - 1 bytes": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
    "memo at 2**32 - 1": b"\x80\x02Nr\xff\xff\xff\xff",
    "missing memo": b"\x80\x02h\x07.",
    "a function": b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00truetR.",
    "an extension": b"\x80\x02\x82\x01.",
    "an old instance": b"(S'true'\nios\nsystem\n.",
    "a state": b"\x80\x02}}b.",
    "nothing": b"",
    "no end": b"\x80\x02]",
    "deep": b"(" * 100_000 + b"t" * 100_000 + b".",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("arrays", [False, True])
def test_hostile_pickles_are_one_error(tmp_path, content, arrays):
    (tmp_path / "refs.p").write_bytes(content)
    if content != HOSTILE["deep"]:
        with pytest.raises(UserError, match="not a pickle of plain data"):
            load_plain_pickle(tmp_path / "refs.p", arrays=arrays)
    else:
        load_plain_pickle(tmp_path / "refs.p", arrays=arrays)
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(UserError):
        read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize("content", [c for n, c in HOSTILE.items() if n != "deep"])
def test_hostile_pickles_inside_archives_are_one_error(tmp_path, content):
    torch.save({"w": torch.ones(3)}, tmp_path / "plain.pt")
    torch.jit.script(Pair(Quick(), Quick())).save(str(tmp_path / "script.pt"))
    for name, read in (("plain", safe_torch_load), ("script", read_torchscript)):
        bad = repacked(tmp_path / f"{name}.pt", tmp_path / f"{name}_bad.pt", {"/data.pkl": lambda _: content})
        with pytest.raises(UserError):
            read(bad)


@settings(max_examples=150, deadline=None)
@given(cut=st.integers(0, 200), at=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_damaged_pickles_are_read_or_refused(tmp_path_factory, cut, at, byte):
    content = bytearray(pickle.dumps([{"ref_id": 1, "sentences": [{"raw": "a", "tokens": ["a", "b"]}]}] * 3, 2))
    content[at % len(content)] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.p"
    path.write_bytes(bytes(content[: len(content) - cut % len(content)]))
    with contextlib.suppress(UserError):
        load_plain_pickle(path)


def test_arrays_of_pickles_are_read_and_never_made_to_size(tmp_path):
    told = {b"data": np.arange(6, dtype=np.uint8).reshape(2, 3), b"x": np.float32([[1.5]])}
    for protocol in (0, 2, 4):
        (tmp_path / "batch").write_bytes(pickle.dumps(told, protocol))
        found = load_plain_pickle(tmp_path / "batch", arrays=True)
        assert all(np.array_equal(found[k if k in found else k.decode()], v) for k, v in told.items())

    class Huge:
        def __init__(self, call, arguments):
            self.made = (call, arguments)

        def __reduce__(self):
            return self.made

    rebuild = np.array([]).__reduce__()[0]
    for evil in (
        Huge(np.ndarray, ((2**33,), "O")),
        Huge(rebuild, (np.ndarray, (2**33,), b"O")),
        np.array([{"a": 1}], dtype=object),
    ):
        (tmp_path / "batch").write_bytes(pickle.dumps(evil, 2))
        with pytest.raises(UserError, match="not a pickle of plain data"):
            load_plain_pickle(tmp_path / "batch", arrays=True)


@pytest.mark.parametrize(
    "change",
    [
        {"/data.pkl": lambda c: c.replace(b"K\x03t", b"J\x00\x00\x00\x10t")},
        {"/data/0": lambda c: c[:4]},
        {"/data.pkl": lambda c: c.replace(b"FloatStorage", b"EvilsStorage")},
        {"/data.pkl": lambda c: c.replace(b"storage", b"strange")},
    ],
)
def test_numbers_that_are_not_there_are_not_read(tmp_path, change):
    torch.save({"w": torch.ones(3)}, tmp_path / "plain.pt")
    with pytest.raises(UserError):
        safe_torch_load(repacked(tmp_path / "plain.pt", tmp_path / "bad.pt", change))


@pytest.mark.parametrize(
    "change",
    [
        {"/data/0": lambda c: c[:2]},
        {"/data.pkl": lambda c: c.replace(b"FloatStorage", b"EvilsStorage")},
        {"/data.pkl": lambda c: c.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v9")},
        {"/data.pkl": lambda c: c[: len(c) // 2]},
        {"/data/0": lambda c: b""},
    ],
)
def test_broken_archives_name_the_way_to_trust_them(tmp_path, change):
    torch.jit.script(Pair(Quick(), Quick())).save(str(tmp_path / "script.pt"))
    with pytest.raises(UserError, match=r"If you trust it: python -c .*state.pt"):
        read_torchscript(repacked(tmp_path / "script.pt", tmp_path / "bad.pt", change))


def test_a_zip_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "plain.pt")
    torch.jit.script(Pair(Quick(), Quick())).save(str(tmp_path / "script.pt"))
    zeros = {"/data/0": lambda _: bytes(50 * 2**20)}
    for name, read in (("plain", safe_torch_load), ("script", read_torchscript)):
        bomb = repacked(tmp_path / f"{name}.pt", tmp_path / f"{name}_bomb.pt", zeros, zipfile.ZIP_DEFLATED)
        with pytest.raises(UserError, match="declares"):
            read(bomb)


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 2**40),
        struct.pack("<Q", 10) + b"{}",
        b"\x01",
        struct.pack("<Q", 64)
        + json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).ljust(64).encode(),
        struct.pack("<Q", 64)
        + json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}).ljust(64).encode()
        + bytes(8),
    ],
)
def test_absurd_headers_of_safetensors_are_one_error(tmp_path, header):
    (tmp_path / "w.safetensors").write_bytes(header)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read_checkpoint(tmp_path / "w.safetensors")


def test_arrays_of_numpy_are_no_checkpoints(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    buffer = io.BytesIO()
    np.savez(buffer, w=np.array([Evil()], dtype=object))
    for name in ("w.npz", "w.pt"):
        (tmp_path / name).write_bytes(buffer.getvalue())
        with pytest.raises(UserError):
            read_checkpoint(tmp_path / name)
