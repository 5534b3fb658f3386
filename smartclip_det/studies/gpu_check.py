"""What only a GPU can show, on a bare machine (torch and MMEngine): parity, waits, memory and speed.

Stages are independent; the JSON is written after each, and a call with the same options goes on with those it lacks.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from smartclip_det.core.errors import UserError
from smartclip_det.datasets.caption_batch import caption_batch
from smartclip_det.formats.json_files import read_json
from smartclip_det.models.alignment import SmartCLIPAlignment
from smartclip_det.models.towers.text_batch import texts_to
from smartclip_det.protocols.stamp import protocol_stamp, write_results
from smartclip_det.studies.benchmarks.alignment import caption_tokens
from smartclip_det.studies.benchmarks.measuring import PeakMemory, in_turns
from smartclip_det.studies.gpu_families import build_step, losses_of, waits_of
from smartclip_det.utils.steps import python_path, verb


@dataclass(frozen=True)
class GpuCheckOptions:
    """What is checked.

    Attributes:
        device: ``cuda``, ``cuda:N``, or ``cpu`` (parity is then of the CPU with itself).
        arch: of the towers, with random weights.
        batch: pairs of a step.
        big: pairs of the head alone.
        batches: pairs of the steps whose peak memory and speed are told.
        again: forget the stages that an earlier call has done.
        benchmark: also run ``bench alignment`` there.
        out: JSON.
    """

    device: str = "cuda"
    arch: str = "SmartCLIP-B-16"
    batch: int = 64
    big: int = 32768
    batches: tuple[int, ...] = (128, 256, 512)
    again: bool = False
    benchmark: bool = False
    out: Path = Path("work_dirs/gpu_check.json")


def model_on(device: str, arch: str, **options: Any) -> SmartCLIPAlignment:
    """The same random weights on any device."""
    return SmartCLIPAlignment({"arch": arch, "seed": 0}, **options).to(device).train()


def batch_on(device: str, model: SmartCLIPAlignment, count: int) -> tuple[Tensor, list[BaseDataElement]]:
    """Random pixels and tokens, the same on any device."""
    config = model.towers.config
    pixels = torch.randint(
        0,
        256,
        (count, 3, config.image_size, config.image_size),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(1),
    )
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
    return {
        "loss": own[0],
        "relative_difference": relative,
        "gradient_cosine": cosine,
        "passed": relative < 1e-3 and cosine > 0.999,
    }


def mixed_precision(task: GpuCheckOptions) -> dict[str, Any]:
    """bf16 beside fp32 on the device: finite, near, and the same direction."""
    count = min(task.batch, 64)
    exact = loss_and_gradients(model_on(task.device, task.arch), task.device, count, False)
    found = loss_and_gradients(model_on(task.device, task.arch), task.device, count, True)
    cosine = float(torch.nn.functional.cosine_similarity(found[1], exact[1], dim=0))
    relative = abs(found[0] - exact[0]) / abs(exact[0])
    finite = bool(torch.isfinite(found[1]).all())
    return {
        "relative_difference": relative,
        "gradient_cosine": cosine,
        "finite": finite,
        "passed": finite and relative < 0.05 and cosine > 0.9,
    }


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
    out = {
        "batch": task.batch,
        "part": part,
        "peak_mib": peaks,
        "relative_difference": relative,
        "passed": relative < 0.02,
    }
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


def steps_in_bf16(task: GpuCheckOptions) -> dict[str, Any]:
    """Peak memory and pairs a second of a training step with its optimizer, by number of pairs; what fails is told."""
    rows: dict[str, Any] = {}
    for count in task.batches:
        model = model_on(task.device, task.arch)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
        pixels, samples = batch_on(task.device, model, count)

        def step(model: Any = model, optimizer: Any = optimizer, pixels: Any = pixels, samples: Any = samples) -> None:
            with torch.autocast(task.device.split(":")[0], torch.bfloat16):
                losses = model(pixels, samples, mode="loss")
            sum(v for k, v in losses.items() if k.startswith("loss")).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        try:
            found = in_turns({"step": step}, 5)["step"]
            rows[str(count)] = {
                "seconds": found["median"],
                "pairs_per_second": count / found["median"],
                "peak_mib": found["peak_mib"],
            }
        except torch.OutOfMemoryError as error:
            rows[str(count)] = {"out_of_memory": str(error).splitlines()[0]}
        del model, optimizer
    return {"steps": rows, "passed": any("seconds" in r for r in rows.values())}


def family(name: str) -> Callable[[GpuCheckOptions], dict[str, Any]]:
    """The check of a family that needs MMDetection; told and passed over where that is absent."""

    def check(task: GpuCheckOptions) -> dict[str, Any]:
        if importlib.util.find_spec("mmdet") is None:
            return {"left_out": "MMDetection is not installed", "passed": True}
        expected = losses_of(build_step(name, "cpu"))
        step = build_step(name, task.device)
        found = losses_of(step)
        relative = abs(found - expected) / abs(expected)
        return {"loss": found, "relative_difference": relative, "waits": waits_of(step), "passed": relative < 1e-3}

    return check


def waits(task: GpuCheckOptions) -> dict[str, Any]:
    """Synchronising calls of an alignment step without its logging; None without a card."""
    model = model_on(task.device, task.arch)
    pixels, samples = batch_on(task.device, model, task.batch)
    batch = caption_batch([{"inputs": p, "data_samples": s} for p, s in zip(pixels, samples, strict=True)])
    texts = texts_to(batch["texts"], torch.device(task.device))

    def step() -> None:
        losses = model(batch["inputs"], batch["data_samples"], mode="loss", texts=texts)
        sum(v for k, v in losses.items() if k.startswith("loss")).backward()
        model.zero_grad(set_to_none=True)

    found = waits_of(step)
    return {"waits": found, "passed": not found}


CHECKS: dict[str, Callable[[GpuCheckOptions], dict[str, Any]]] = {
    "parity": parity,
    "waits": waits,
    "mixed_precision": mixed_precision,
    "memory": memory,
    "many_negatives": many_negatives,
    "steps": steps_in_bf16,
    "two-stage": family("two-stage"),
    "one-stage": family("one-stage"),
    "referring": family("referring"),
}


def check_gpu(task: GpuCheckOptions) -> bool:
    """Run every check that an earlier call with the same options has not done; a line for each is printed.

    Returns:
        Whether all passed.

    Raises:
        UserError: without a CUDA device, unless the CPU is asked for.
    """
    if task.device != "cpu" and not torch.cuda.is_available():
        raise UserError("No CUDA device here. --device cpu runs the same checks on the CPU.")
    if task.batch < 4 or task.big < 2:
        raise UserError("--batch must be at least 4 and --big at least 2.")
    device = torch.cuda.get_device_name() if task.device != "cpu" else "cpu"
    asked = {"device": device, "arch": task.arch, "batch": task.batch, "big": task.big, "batches": list(task.batches)}
    stamp = protocol_stamp("gpu_check", **asked)
    found = {} if task.again else _done(task.out, asked, stamp["code"])
    for name, check in CHECKS.items():
        before = name in found
        if not before:
            begun = time.perf_counter()
            found[name] = check(task)
            found[name]["stage_seconds"] = time.perf_counter() - begun
            write_results(task.out, stamp, found)
        print(
            f"{'ok  ' if found[name]['passed'] else 'FAIL'} {name:16s} {'(done before) ' if before else ''}"
            + ", ".join(f"{k} {v}" for k, v in found[name].items() if k != "passed"),
            flush=True,
        )
    print(f"written: {task.out}")
    if task.benchmark:
        command = verb(
            "bench",
            "alignment",
            "--device",
            task.device,
            "--arch",
            task.arch,
            "--batch",
            str(task.batch),
            "--bf16",
            "--out",
            str(task.out.with_name("gpu_benchmark.json")),
        )
        subprocess.run([sys.executable, *command], check=True, env={**os.environ, "PYTHONPATH": python_path()})
    return all(f["passed"] for f in found.values())


def _done(path: Path, asked: Mapping[str, Any], code: Any) -> dict[str, Any]:
    """Stages that passed in an earlier call with the same options, device and code."""
    if not path.is_file():
        return {}
    content = read_json(path, "GPU check")
    stamp, found = content.get("protocol", {}), content.get("metrics", {})
    same = all(stamp.get(k) == v for k, v in asked.items()) and stamp.get("code") == code
    return {k: v for k, v in found.items() if k in CHECKS and v.get("passed")} if same else {}
