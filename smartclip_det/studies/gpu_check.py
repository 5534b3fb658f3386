"""GPU checks on a bare machine (torch and MMEngine): CPU parity, host synchronisation, memory and speed.

Stages are independent. The JSON is written after each one, and a call with the same options runs only missing stages.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from smartclip_det.core.errors import UserError
from smartclip_det.datasets.caption_batch import caption_batch
from smartclip_det.formats.json_files import read_json
from smartclip_det.models.alignment import SmartCLIPAlignment
from smartclip_det.models.towers.text_batch import texts_to
from smartclip_det.protocols.stamp import protocol_stamp, write_results
from smartclip_det.studies.benchmarks.alignment import caption_tokens
from smartclip_det.studies.benchmarks.measuring import PeakMemory, in_turns, synchronise
from smartclip_det.studies.gpu_families import build_step, losses_of, waits_of
from smartclip_det.studies.gpu_runs import torchrun, whole_run
from smartclip_det.utils.steps import python_path, verb


@dataclass(frozen=True)
class GpuCheckOptions:
    """Options of the GPU checks.

    Attributes:
        device: ``cuda``, ``cuda:N``, or ``cpu`` (parity then compares the CPU with itself).
        arch: tower architecture, with random weights.
        batch: pairs per step.
        big: pairs for the loss head alone.
        batches: batch sizes of the benchmarked steps.
        again: discard the results of earlier runs.
        benchmark: also run ``bench alignment``.
        out: JSON output.
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
    """Build a model; the random weights are identical on all devices."""
    return SmartCLIPAlignment({"arch": arch, "seed": 0}, **options).to(device).train()


def batch_on(device: str, model: SmartCLIPAlignment, count: int) -> tuple[Tensor, list[BaseDataElement]]:
    """Generate random pixels and tokens, identical on all devices."""
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
    """Return the loss of a batch, and all gradients as one fp32 vector on the CPU."""
    pixels, samples = batch_on(device, model, count)
    with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=bf16):
        losses = model(pixels, samples, mode="loss")
    loss = sum((v for k, v in losses.items() if k.startswith("loss")), torch.zeros((), device=device))
    loss.backward()
    grads = torch.cat([p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return float(loss.detach()), grads


def parity(task: GpuCheckOptions) -> dict[str, Any]:
    """Compare loss and gradients of the device with those of the CPU, in fp32."""
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
    """Compare bf16 with fp32 on the device: loss close, gradients finite and aligned."""
    count = min(task.batch, 64)
    exact = loss_and_gradients(model_on(task.device, task.arch), task.device, count, False)
    result = loss_and_gradients(model_on(task.device, task.arch), task.device, count, True)
    cosine = float(torch.nn.functional.cosine_similarity(result[1], exact[1], dim=0))
    relative = abs(result[0] - exact[0]) / abs(exact[0])
    finite = bool(torch.isfinite(result[1]).all())
    return {
        "relative_difference": relative,
        "gradient_cosine": cosine,
        "finite": finite,
        "passed": finite and relative < 0.05 and cosine > 0.9,
    }


def memory(task: GpuCheckOptions) -> dict[str, Any]:
    """Check that micro-batching gives the loss of the whole batch with the activation memory of a part."""
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
        # Only the GPU's peak memory is comparable: CPU memory of a process is not returned between runs.
        out["passed"] = out["passed"] and peaks["parts"] < 0.7 * peaks["whole"]
    return out


def many_negatives(task: GpuCheckOptions) -> dict[str, Any]:
    """Run the tiled loss head at ``--big`` pairs: peak memory, and that the gradients are finite."""
    from smartclip_det.models.losses import AlignmentLoss

    given = [torch.randn(task.big, 512, device=task.device, requires_grad=True) for _ in range(3)]
    scale = torch.zeros((), device=task.device)
    with PeakMemory() as peak:
        losses = AlignmentLoss()(*given, scale)
        sum((v for k, v in losses.items() if k.startswith("loss")), torch.zeros((), device=task.device)).backward()
    finite = all(bool(torch.isfinite(x.grad).all()) for x in given if x.grad is not None)
    whole = task.big**2 * 4 * 6 / 2**20
    return {"pairs": task.big, "peak_mib": peak.mib, "whole_matrix_mib": whole, "passed": finite}


def training_step(task: GpuCheckOptions, count: int, **options: Any) -> Callable[[], None]:
    """A bf16 training step with optimizer."""
    model = model_on(task.device, task.arch, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    pixels, samples = batch_on(task.device, model, count)

    def step() -> None:
        with torch.autocast(task.device.split(":")[0], torch.bfloat16):
            losses = model(pixels, samples, mode="loss")
        sum(v for k, v in losses.items() if k.startswith("loss")).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def steps_in_bf16(task: GpuCheckOptions) -> dict[str, Any]:
    """Measure peak memory and pairs per second of a training step with optimizer, by batch size; OOM is reported."""
    rows: dict[str, Any] = {}
    for count in task.batches:
        try:
            timing = in_turns({"step": training_step(task, count)}, 5)["step"]
            rows[str(count)] = {
                "seconds": timing["median"],
                "pairs_per_second": count / timing["median"],
                "peak_mib": timing["peak_mib"],
            }
        except torch.OutOfMemoryError as error:
            rows[str(count)] = {"out_of_memory": str(error).splitlines()[0]}
    return {"steps": rows, "passed": any("seconds" in r for r in rows.values())}


def family(name: str) -> Callable[[GpuCheckOptions], dict[str, Any]]:
    """Return the check of a detector family; it is skipped, with a note, if MMDetection is not installed."""

    def check(task: GpuCheckOptions) -> dict[str, Any]:
        for package in ("mmdet", *(["transformers"] if name == "grounding-dino" else [])):
            if importlib.util.find_spec(package) is None:
                return {"left_out": f"{package} is not installed", "passed": True}
        expected = losses_of(build_step(name, "cpu"))
        step = build_step(name, task.device)
        loss = losses_of(step)
        relative = abs(loss - expected) / abs(expected)
        return {"loss": loss, "relative_difference": relative, "waits": waits_of(step), "passed": relative < 1e-3}

    return check


def waits(task: GpuCheckOptions) -> dict[str, Any]:
    """Count host-device synchronisations in an alignment step without logging; None without a GPU."""
    model = model_on(task.device, task.arch)
    pixels, samples = batch_on(task.device, model, task.batch)
    batch = caption_batch([{"inputs": p, "data_samples": s} for p, s in zip(pixels, samples, strict=True)])
    texts = texts_to(batch["texts"], torch.device(task.device))

    def step() -> None:
        losses = model(batch["inputs"], batch["data_samples"], mode="loss", texts=texts)
        sum(v for k, v in losses.items() if k.startswith("loss")).backward()
        model.zero_grad(set_to_none=True)

    count = waits_of(step)
    return {"waits": count, "passed": not count}


def busy(task: GpuCheckOptions) -> dict[str, Any]:
    """Fraction of a training step during which the device computes, measured with torch's profiler."""
    step = training_step(task, task.batch)
    step()
    card = task.device != "cpu"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if card else [])]
    synchronise()
    begun = time.perf_counter()
    with profile(activities=kinds) as found:
        for _ in range(3):
            step()
        synchronise()
        seconds = time.perf_counter() - begun
    kind = DeviceType.CUDA if card else DeviceType.CPU
    spans = [(e.time_range.start, e.time_range.end) for e in found.events() if e.device_type == kind]
    share = covered(spans) / 1e6 / seconds
    return {"busy_share": share, "kernels": len(spans), "step_seconds": seconds / 3, "passed": len(spans) > 0}


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Total length of the union of spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def compiled(task: GpuCheckOptions) -> dict[str, Any]:
    """Compare a training step with compiled blocks to eager mode; the CPU uses a backend without a compiler."""
    backend = "aot_eager" if task.device == "cpu" else "inductor"
    losses, seconds = {}, {}
    for name, chosen in (("eager", ""), ("compiled", backend)):
        model = model_on(task.device, task.arch, compile=chosen)
        losses[name], _ = loss_and_gradients(model, task.device, task.batch, task.device != "cpu")
        step = training_step(task, task.batch, compile=chosen)
        seconds[name] = in_turns({"step": step}, 3)["step"]["median"]
        del model, step
    relative = abs(losses["compiled"] - losses["eager"]) / abs(losses["eager"])
    limit = 1e-5 if task.device == "cpu" else 0.02
    return {"backend": backend, "seconds": seconds, "relative_difference": relative, "passed": relative < limit}


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
    "grounding-dino": family("grounding-dino"),
    "busy": busy,
    "compiled": compiled,
    "run": lambda task: whole_run(task.arch, task.device, task.batch),
    "torchrun": lambda task: torchrun(task.arch, task.device, task.batch),
}


def check_gpu(task: GpuCheckOptions) -> bool:
    """Run all checks that an earlier call with the same options has not passed, and print a line for each.

    Returns:
        Whether all passed.

    Raises:
        UserError: without a CUDA device, unless the device is ``cpu``.
    """
    if task.device != "cpu" and not torch.cuda.is_available():
        raise UserError("No CUDA device available. Use --device cpu to run the same checks on the CPU.")
    if task.batch < 4 or task.big < 2:
        raise UserError("--batch must be at least 4 and --big at least 2.")
    device = torch.cuda.get_device_name() if task.device != "cpu" else "cpu"
    settings = {
        "device": device,
        "arch": task.arch,
        "batch": task.batch,
        "big": task.big,
        "batches": list(task.batches),
    }
    stamp = protocol_stamp("gpu_check", **settings)
    results = {} if task.again else _done(task.out, settings, stamp["code"])
    for name, check in CHECKS.items():
        before = name in results
        if not before:
            begun = time.perf_counter()
            results[name] = check(task)
            results[name]["stage_seconds"] = time.perf_counter() - begun
            write_results(task.out, stamp, results)
        print(
            f"{'ok  ' if results[name]['passed'] else 'FAIL'} {name:16s} {'(from an earlier run) ' if before else ''}"
            + ", ".join(f"{k} {v}" for k, v in results[name].items() if k != "passed"),
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
    return all(f["passed"] for f in results.values())


def _done(path: Path, settings: Mapping[str, Any], code: Any) -> dict[str, Any]:
    """Load the stages that passed in an earlier call with the same settings, device and code."""
    if not path.is_file():
        return {}
    content = read_json(path, "GPU check")
    stamp, results = content.get("protocol", {}), content.get("metrics", {})
    same = all(stamp.get(k) == v for k, v in settings.items()) and stamp.get("code") == code
    return {k: v for k, v in results.items() if k in CHECKS and v.get("passed")} if same else {}
