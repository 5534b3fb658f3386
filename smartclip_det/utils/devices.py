"""Device names, precision, and whether bfloat16 is worthwhile on a device."""

from __future__ import annotations

import logging
import re
import time
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch

from smartclip_det.core.errors import UserError, check_choice

logger = logging.getLogger(__name__)
#: Flags in /proc/cpuinfo that indicate bfloat16 matrix products: x86, then Arm.
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"}
_CPU_FLAGS = Path("/proc/cpuinfo")
#: Time of a bfloat16 product, as a multiple of float32's, above which it must be emulated.
EMULATED = 5.0


def resolve_device(device: str) -> torch.device:
    """Resolve ``auto`` to the first CUDA device, else the CPU; an unavailable device is an error.

    Raises:
        UserError: for an unknown name, or CUDA or MPS if torch has no such device.
    """
    if device not in ("auto", "cpu", "mps") and not re.fullmatch(r"cuda(:\d+)?", device):
        raise UserError(f"device={device!r} is not known. Allowed: auto, cpu, cuda, cuda:N, mps.")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("device='mps' is not available in this build of torch. Use --device cpu or auto.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={device!r} is not available: torch sees no CUDA device. Use --device cpu or auto.")
    if device.startswith("cuda:") and int(device[5:]) >= torch.cuda.device_count():
        raise UserError(f"device={device!r} is not available: torch sees {torch.cuda.device_count()} CUDA device(s).")
    return torch.device(device)


def bf16_pays(device: str) -> bool:
    """Whether a device type multiplies in bfloat16 natively.

    On a CPU without bfloat16 instructions a product is tens of times slower than in float32, and torch offers no query
    for it. There we check the processor flags (where the system exposes them) and time a small product. The limit is
    far from both cases: a busy machine must not change the precision of a training.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and _cpu_has_flag() is not False and _cpu_product_pays()


@cache
def _cpu_has_flag() -> bool | None:
    """From /proc/cpuinfo; None if the system has no such file."""
    try:
        text = _CPU_FLAGS.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    lines = [line.split(":", 1)[1] for line in text.splitlines() if line.lower().startswith(("flags", "features"))]
    return any(_BF16_FLAGS & set(line.split()) for line in lines)


@cache
def _cpu_product_pays(size: int = 256, times: int = 5) -> bool:
    """Whether bfloat16 products are not emulated; best of several runs, about 30 ms."""
    return _product_seconds(torch.bfloat16, size, times) <= EMULATED * _product_seconds(torch.float32, size, times)


def _product_seconds(dtype: torch.dtype, size: int, times: int) -> float:
    a = torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - started)
    return best


#: Precisions of towers at inference.
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str) -> str:
    """Validate a name in :data:`PRECISIONS`.

    Raises:
        UserError: for any other name.
    """
    return check_choice("precision", precision, PRECISIONS)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Autocast to a precision; ``fp32`` leaves the caller's autocast state unchanged."""
    dtype = PRECISIONS[check_precision(precision)]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def frozen_precision(device: torch.device, precision: str = "auto") -> AbstractContextManager[Any]:
    """Precision of a frozen tower, through which no gradient flows.

    Args:
        device: device of the tower.
        precision: ``auto``: bf16 on GPUs that support it, elsewhere the caller's autocast state; or a name in
            :data:`PRECISIONS`.
    """
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and bf16_pays("cuda") else "fp32"
    return autocast(device, precision)


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Disable autocast, whatever the caller set: scores and boxes need fp32."""
    return torch.autocast(device.type, enabled=False)
