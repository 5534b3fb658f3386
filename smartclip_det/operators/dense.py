"""Operators on maps of features, and what mmcv reports of its build."""

from __future__ import annotations

__all__ = ["get_compiler_version", "get_compiling_cuda_version"]


def get_compiler_version() -> str:
    """Says that nothing is compiled."""
    return "none (operators by torchvision and torch)"


def get_compiling_cuda_version() -> str:
    """The words of an mmcv without CUDA."""
    return "not available"
