"""What only a GPU can show, in one command on a bare machine (torch and MMEngine).

Parity with the CPU, waits, mixed precision, memory and speed by batch, a step of each detector.

    smartclip-det check gpu --out work_dirs/gpu_check.json
    smartclip-det check gpu --arch SmartCLIP-B-16 --batch 256 --big 4096 --benchmark

The JSON is written after each stage; the same command goes on with the stages that it lacks, or that failed.

Each check tells what it measured and whether it passed; the exit code is 1 when one failed. --device cpu runs the same
checks where there is no GPU (parity is then of the CPU with itself).
"""

from __future__ import annotations

import argparse

from smartclip_det.cli.options import a_device, add_out


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add = parser.add_argument
    add("--device", type=a_device, default="auto", help="auto (default: CUDA, or an error), cuda, cuda:N, or cpu")
    add("--arch", default="SmartCLIP-B-16", help="of the towers, with random weights")
    add("--batch", type=int, default=64, help="pairs of a step")
    add("--big", type=int, default=32768, help="pairs of the head alone")
    add("--batches", type=int, nargs="+", default=[128, 256, 512], help="pairs of the steps that are measured")
    add("--again", action="store_true", help="forget what an earlier call has done")
    add("--benchmark", action="store_true", help="also run smartclip-det bench alignment there")
    add_out(parser, "work_dirs/gpu_check.json", "JSON")


def run(args: argparse.Namespace) -> int:
    """Check, and answer by the exit code."""
    from smartclip_det.studies.gpu_check import GpuCheckOptions, check_gpu

    device = "cuda" if args.device == "auto" else args.device
    return 0 if check_gpu(GpuCheckOptions(**{**vars(args), "device": device, "batches": tuple(args.batches)})) else 1
