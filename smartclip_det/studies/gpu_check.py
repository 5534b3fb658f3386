"""What only a GPU can show, on a bare machine (torch and MMEngine): parity, mixed precision, memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from smartclip_det.core.errors import UserError
from smartclip_det.models.alignment import SmartCLIPAlignment
from smartclip_det.protocols.stamp import protocol_stamp, write_results
from smartclip_det.studies.benchmarks.alignment import caption_tokens
from smartclip_det.studies.benchmarks.measuring import PeakMemory
from smartclip_det.utils.steps import python_path, verb


@dataclass(frozen=True)
class GpuCheckOptions:
    """What is checked.

    Attributes:
        device: ``cuda``, ``cuda:N``, or ``cpu`` (parity is then of the CPU with itself).
        arch: of the towers, with random weights.
        batch: pairs of a step.
        big: pairs of the head alone.
        benchmark: also run ``bench alignment`` there.
        out: JSON.
    """

    device: str = "cuda"
    arch: str = "SmartCLIP-B-16"
    batch: int = 64
    big: int = 32768
    benchmark: bool = False
    out: Path = Path("work_dirs/gpu_check.json")


def model_on(device: str, arch: str, **options: Any) -> SmartCLIPAlignment:
    """The same random weights on any device."""
    return SmartCLIPAlignment({"arch": arch, "seed": 0}, **options).to(device).train()


def batch_on(device: str, model: SmartCLIPAlignment, count: int) -> tuple[Tensor, list[BaseDataElement]]:
    """Random pixels and tokens, the same on any device."""
    config = model.towers.config
    pixels = torch.randint(0, 256, (count, 3, config.image_size, config.image_size), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(1))  # fmt: skip
    tokens = caption_tokens(count, config.context_length, config.context_length // 2)
    ends = tokens.argmax(dim=1) + 1
    samples = [BaseDataElement(metainfo={"drawn_tokens": [t[:n].tolist()]}) for t, n in zip(tokens, ends, strict=True)]
    return pixels.to(device), samples


def loss_and_gradients(model: SmartCLIPAlignment, device: str, count: int, bf16: bool) -> tuple[float, Tensor]:
    """Loss of a batch, and all gradients as one vector in fp32 on the CPU."""
    pixels, samples = batch_on(device, model, count)
    with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=bf16):
        losses = model(pixels, samples, mode="loss")
    loss = sum((v for k, v in losses.items() if k.startswith("loss")), torch.zeros((), device=device))
    loss.backward()
    grads = torch.cat([p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return float(loss.detach()), grads


def parity(task: GpuCheckOptions) -> dict[str, Any]:
    """Loss and gradients of the device beside the CPU's, fp32."""
    count = min(task.batch, 16)
    theirs = loss_and_gradients(model_on("cpu", task.arch), "cpu", count, False)
    own = loss_and_gradients(model_on(task.device, task.arch), task.device, count, False)
    cosine = float(torch.nn.functional.cosine_similarity(own[1], theirs[1], dim=0))
    relative = abs(own[0] - theirs[0]) / abs(theirs[0])
    return {"loss": own[0], "relative_difference": relative, "gradient_cosine": cosine,
            "passed": relative < 1e-3 and cosine > 0.999}  # fmt: skip


def mixed_precision(task: GpuCheckOptions) -> dict[str, Any]:
    """bf16 beside fp32 on the device: finite, near, and the same direction."""
    count = min(task.batch, 64)
    exact = loss_and_gradients(model_on(task.device, task.arch), task.device, count, False)
    found = loss_and_gradients(model_on(task.device, task.arch), task.device, count, True)
    cosine = float(torch.nn.functional.cosine_similarity(found[1], exact[1], dim=0))
    relative = abs(found[0] - exact[0]) / abs(exact[0])
    finite = bool(torch.isfinite(found[1]).all())
    return {"relative_difference": relative, "gradient_cosine": cosine, "finite": finite,
            "passed": finite and relative < 0.05 and cosine > 0.9}  # fmt: skip


def memory(task: GpuCheckOptions) -> dict[str, Any]:
    """A batch in parts: the loss of the whole batch, with the activations of a part."""
    part = max(1, task.batch // 4)
    peaks, losses = {}, {}
    for name, options in (("whole", {}), ("parts", {"micro_batch": part, "text_chunks": 4})):
        model = model_on(task.device, task.arch, **options)
        with PeakMemory() as peak:
            losses[name], _ = loss_and_gradients(model, task.device, task.batch, True)
        peaks[name] = peak.mib
        del model
    relative = abs(losses["parts"] - losses["whole"]) / abs(losses["whole"])
    out = {"batch": task.batch, "part": part, "peak_mib": peaks, "relative_difference": relative,
           "passed": relative < 0.02}  # fmt: skip
    if task.device != "cpu":
        # A process's own peak on a CPU is not returned between runs; a card's is.
        out["passed"] = out["passed"] and peaks["parts"] < 0.7 * peaks["whole"]
    return out


def many_negatives(task: GpuCheckOptions) -> dict[str, Any]:
    """The head alone at ``--big`` pairs in tiles: what it takes, and that loss and gradients are finite."""
    from smartclip_det.models.losses import AlignmentLoss

    given = [torch.randn(task.big, 512, device=task.device, requires_grad=True) for _ in range(3)]
    scale = torch.zeros((), device=task.device)
    with PeakMemory() as peak:
        losses = AlignmentLoss()(*given, scale)
        sum((v for k, v in losses.items() if k.startswith("loss")), torch.zeros((), device=task.device)).backward()
    finite = all(bool(torch.isfinite(x.grad).all()) for x in given if x.grad is not None)
    whole = task.big**2 * 4 * 6 / 2**20
    return {"pairs": task.big, "peak_mib": peak.mib, "whole_matrix_mib": whole, "passed": finite}


CHECKS: dict[str, Callable[[GpuCheckOptions], dict[str, Any]]] = {
    "parity": parity, "mixed_precision": mixed_precision, "memory": memory, "many_negatives": many_negatives,
}  # fmt: skip


def check_gpu(task: GpuCheckOptions) -> bool:
    """Run every check; a line for each is printed.

    Returns:
        Whether all passed.

    Raises:
        UserError: without a CUDA device, unless the CPU is asked for.
    """
    if task.device != "cpu" and not torch.cuda.is_available():
        raise UserError("No CUDA device here. --device cpu runs the same checks on the CPU.")
    if task.batch < 4 or task.big < 2:
        raise UserError("--batch must be at least 4 and --big at least 2.")
    found = {}
    for name, check in CHECKS.items():
        found[name] = check(task)
        print(f"{'ok  ' if found[name]['passed'] else 'FAIL'} {name:16s} "
              + ", ".join(f"{k} {v}" for k, v in found[name].items() if k != "passed"), flush=True)  # fmt: skip
    device = torch.cuda.get_device_name() if task.device != "cpu" else "cpu"
    stamp = protocol_stamp("gpu_check", device=device, arch=task.arch, batch=task.batch)
    print(f"written: {write_results(task.out, stamp, found)}")
    if task.benchmark:
        command = verb("bench", "alignment", "--device", task.device, "--arch", task.arch, "--batch", str(task.batch),
                       "--bf16", "--out", str(task.out.with_name("gpu_benchmark.json")))  # fmt: skip
        subprocess.run([sys.executable, *command], check=True, env={**os.environ, "PYTHONPATH": python_path()})
    return all(f["passed"] for f in found.values())
