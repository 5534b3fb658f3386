"""Differentiable collectives for the alignment losses.

Shape letters: B rows of this process, Bg rows of all processes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def world_size() -> int:
    """Number of processes; 1 without torch.distributed."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gather_rows(*tensors: Tensor) -> tuple[list[Tensor], int]:
    """Rows of all processes in rank order, with gradients back to the process they came from.

    Args:
        tensors: ``[B, ...]`` each, with one B per process. Sizes may differ between processes: gloo and nccl corrupt
            uneven sizes silently, so rows are padded and trimmed.

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


class _LogSumExpOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        peak = x.detach().clone()
        distributed.all_reduce(peak, distributed.ReduceOp.MAX)
        total = (x - peak).exp()
        distributed.all_reduce(total)
        out = total.log() + peak
        ctx.save_for_backward((x - out).exp())
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # Each process uses some of the sums in its loss; the gradient of its terms is the sum over processes.
        total = grads[0].contiguous().clone()
        distributed.all_reduce(total)
        return total * ctx.saved_tensors[0]


def logsumexp_over_processes(x: Tensor) -> Tensor:
    """``log(sum over processes of exp(x))``, entry by entry, with exact gradients to every process's ``x``."""
    out: Tensor = x if world_size() == 1 else _LogSumExpOverProcesses.apply(x)
    return out
