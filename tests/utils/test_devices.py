"""Devices by name, and where bfloat16 is used."""

from __future__ import annotations

import pytest
import torch

from smartclip_det.core.errors import UserError
from smartclip_det.utils import devices

X86 = "processor\t: 0\nflags\t\t: fpu sse2 avx2 {}\n"


@pytest.fixture(autouse=True)
def no_memory_of_before():
    devices._cpu_has_flag.cache_clear()
    devices._cpu_product_pays.cache_clear()
    yield
    devices._cpu_has_flag.cache_clear()
    devices._cpu_product_pays.cache_clear()


def seconds(monkeypatch, bf16, fp32):
    asked = []

    def measured(dtype, size, times):
        asked.append(dtype)
        return bf16 if dtype == torch.bfloat16 else fp32

    monkeypatch.setattr(devices, "_product_seconds", measured)
    return asked


def flags(monkeypatch, tmp_path, text):
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(devices, "_CPU_FLAGS", path)


@pytest.mark.parametrize(
    ("text", "bf16", "fp32", "pays"),
    [
        (X86.format("avx512_bf16 avx512f"), 1.0, 2.0, True),
        (X86.format("amx_bf16"), 1.0, 2.0, True),
        ("Features\t: fp asimd bf16 i8mm\n", 1.0, 1.0, True),
        # The CPU flag is not enough: a library may not use it.
        (X86.format("avx512_bf16"), 20.0, 1.0, False),
        # On a busy machine timings of products are unreliable, and the precision must not change.
        (X86.format("avx512_bf16"), 3.0, 1.0, True),
        # A substring of a flag is not the flag.
        (X86.format("avx512_bf16x"), 1.0, 2.0, False),
        (X86.format(""), 1.0, 2.0, False),
        # Without this file (macOS, Windows) only the measurement counts.
        (None, 1.0, 2.0, True),
        (None, 80.0, 1.0, False),
    ],
)
def test_bf16_on_a_cpu_by_its_flags_and_a_measured_product(monkeypatch, tmp_path, text, bf16, fp32, pays):
    flags(monkeypatch, tmp_path, text)
    seconds(monkeypatch, bf16, fp32)
    assert devices.bf16_pays("cpu") is pays


def test_nothing_is_measured_where_the_flags_say_no_and_once_otherwise(monkeypatch, tmp_path):
    flags(monkeypatch, tmp_path, X86.format(""))
    asked = seconds(monkeypatch, 1.0, 2.0)
    devices.bf16_pays("cpu")
    assert asked == []
    devices._cpu_has_flag.cache_clear()
    flags(monkeypatch, tmp_path, X86.format("avx512_bf16"))
    assert devices.bf16_pays("cpu")
    assert devices.bf16_pays("cpu")
    assert len(asked) == 2


def test_the_measured_product_takes_time():
    assert 0 < devices._product_seconds(torch.float32, 32, 2) < 1


def test_devices_without_a_route_keep_float32():
    assert not devices.bf16_pays("mps")


@pytest.mark.parametrize("pays", [True, False])
def test_the_wrapper_trains_in_what_the_machine_has_and_says_so_once(monkeypatch, pays):
    from smartclip_det.engine import optim

    told = []
    monkeypatch.setattr(optim, "bf16_pays", lambda device: pays)
    monkeypatch.setattr(optim, "print_log", lambda text, logger: told.append(text))
    model = torch.nn.Linear(4, 4)
    wrapper = optim.BFloat16OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    for _ in range(2):
        with wrapper.optim_context(model):
            out = model(torch.ones(1, 4))
        assert out.dtype == (torch.bfloat16 if pays else torch.float32)
    assert told == ([] if pays else ["bfloat16 is slow or absent on this cpu: training in float32."])


def test_names_of_devices(monkeypatch):
    assert devices.resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="'gpu' is not known. Allowed: auto, cpu, cuda, cuda:N, mps"):
        devices.resolve_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert devices.resolve_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="no CUDA device"):
        devices.resolve_device("cuda")
    with pytest.raises(UserError, match="device='mps' is not available"):
        devices.resolve_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.resolve_device("mps") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.resolve_device("auto") == torch.device("cuda")
    assert devices.resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match=r"sees 2 CUDA device\(s\)"):
        devices.resolve_device("cuda:2")


def test_cores_are_counted_where_a_process_has_no_affinity(monkeypatch):
    from smartclip_det.utils import parallel

    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert parallel.available_cores() == 3
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert parallel.available_cores() == 1
