"""Run the checks that need a GPU, in one command on a bare machine (torch and MMEngine).

CPU parity, host synchronisation, mixed precision, memory and speed by batch size, and one step of each detector.

    smartclip-det check gpu --out work_dirs/gpu_check.json
    smartclip-det check gpu --arch SmartCLIP-B-16 --batch 256 --big 4096 --benchmark

The JSON is written after each stage. Run the same command again to resume: only missing or failed stages run.

Each check reports its measurement and whether it passed; the exit code is 1 if any failed. --device cpu runs the same
checks without a GPU (parity then compares the CPU with itself).
"""

from __future__ import annotations

import argparse

from smartclip_det.cli.options import a_device, add_out


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add("--device", type=a_device, default="auto", help="auto (default: CUDA, or an error), cuda, cuda:N, or cpu")
    add("--arch", default="SmartCLIP-B-16", help="tower architecture, with random weights")
    add("--batch", type=int, default=64, help="pairs per step")
    add("--big", type=int, default=32768, help="pairs for the loss head alone")
    add("--batches", type=int, nargs="+", default=[128, 256, 512], help="batch sizes of the benchmarked steps")
    add("--again", action="store_true", help="discard the results of earlier runs")
    add("--benchmark", action="store_true", help="also run smartclip-det bench alignment")
    add_out(parser, "work_dirs/gpu_check.json", "JSON output")


def run(args: argparse.Namespace) -> int:
    """Run the checks and return the exit code."""
    from smartclip_det.studies.gpu_check import GpuCheckOptions, check_gpu

    device = "cuda" if args.device == "auto" else args.device
    return 0 if check_gpu(GpuCheckOptions(**{**vars(args), "device": device, "batches": tuple(args.batches)})) else 1
