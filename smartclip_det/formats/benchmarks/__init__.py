"""Benchmarks by name: where their files are (``registry.json``), how they come, and by which counts they are whole."""

from smartclip_det.formats.benchmarks.counts import check_benchmark
from smartclip_det.formats.benchmarks.entries import Benchmark, BenchmarkFile, benchmarks, find_benchmark
from smartclip_det.formats.benchmarks.getting import get_benchmark, plan

__all__ = [
    "Benchmark",
    "BenchmarkFile",
    "benchmarks",
    "check_benchmark",
    "find_benchmark",
    "get_benchmark",
    "plan",
]
