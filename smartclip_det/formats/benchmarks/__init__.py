"""Benchmarks by name: file locations (``registry.json``), downloads, and the counts of complete data sets."""

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
