"""Differentiable gathering of rows over processes."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def world_size() -> int:
    """Number of processes; 1 outside of distributed runs."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gather_rows(*tensors: Tensor) -> tuple[list[Tensor], int]:
    """Rows of every process in rank order, with gradients back to the process that they came from.

    Args:
        tensors: ``[B, ...]`` each, one B per process (processes may differ: gloo and nccl would mix up uneven
            sizes silently, so rows are padded and cut).

    Returns:
        The gathered tensors ``[Bg, ...]`` and the index of this process's first row.
    """
    if world_size() == 1:
        return list(tensors), 0
    from torch.distributed.nn.functional import all_gather

    count = torch.tensor([len(tensors[0])], device=tensors[0].device)
    counts = [torch.zeros_like(count) for _ in range(world_size())]
    distributed.all_gather(counts, count)
    sizes = [int(c) for c in counts]
    most = max(sizes)
    gathered = []
    for x in tensors:
        padding = x.new_zeros(most - len(x), *x.shape[1:])
        parts = all_gather(torch.cat([x, padding]).contiguous())
        gathered.append(torch.cat([p[:n] for p, n in zip(parts, sizes, strict=True)]))
    return gathered, sum(sizes[: distributed.get_rank()])
