"""FLOPs and bytes of every operator of a step, counted on fake tensors: no GPU, no memory, no arithmetic.

GPU time is estimated from data sheet peaks: an operator takes as long as its arithmetic or its memory traffic,
whichever is longer. Nothing here is a measurement.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Card:
    """Dense peaks of a GPU, from its data sheet.

    Attributes:
        bf16: FLOP/s of bf16 matrix products.
        tf32: FLOP/s of fp32 convolutions, which torch runs in TF32 by default.
        fp32: FLOP/s of fp32 matrix products.
        bandwidth: memory bandwidth in bytes/s.
    """

    bf16: float
    tf32: float
    fp32: float
    bandwidth: float


#: NVIDIA H100 and H200 Tensor Core GPU data sheets, SXM5 boards; the figures with sparsity are halved.
CARDS = {
    "H100": Card(bf16=989.4e12, tf32=494.7e12, fp32=66.9e12, bandwidth=3.35e12),
    "H200": Card(bf16=989.4e12, tf32=494.7e12, fp32=66.9e12, bandwidth=4.8e12),
}
#: Assumed fractions of the peaks: of arithmetic for large products, of bandwidth for streaming kernels.
PRODUCT_SHARE, MEMORY_SHARE = 0.65, 0.80
#: Operators that allocate or view tensors without moving values.
_FREE = (
    "empty",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
    "empty_like",
    "_unsafe_view",
    "lift_fresh",
    "device",
)
#: Operators that read only as much of their first argument as they return.
_GATHERS = ("embedding", "index", "index_select", "gather")
_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
#: Functions that autocast runs in low precision on CUDA, and in fp32 (torch's documentation of autocast, operators).
_LOW = {
    "linear",
    "matmul",
    "__matmul__",
    "__rmatmul__",
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "conv2d",
    "scaled_dot_product_attention",
}
_HIGH = {
    "layer_norm",
    "group_norm",
    "softmax",
    "log_softmax",
    "cross_entropy",
    "logsumexp",
    "exp",
    "log",
    "pow",
    "norm",
    "sum",
    "prod",
}


class CudaAutocast(TorchFunctionMode):
    """Emulate CUDA's autocast for tensors on other devices wherever bf16 autocast is on; the CPU's lists differ."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if torch.is_autocast_enabled("cpu") and (name in _LOW or name in _HIGH):
            dtype = torch.bfloat16 if name in _LOW else torch.float32
            args, kwargs = torch.utils._pytree.tree_map_only(
                Tensor, lambda x: x.to(dtype) if x.dtype in (torch.float32, torch.bfloat16) else x, (args, kwargs)
            )
        return func(*args, **kwargs)


@dataclass
class Operator:
    """One call: name, FLOPs, precision of its products, and bytes read and written by storage."""

    name: str
    flop: float
    dtype: torch.dtype
    reads: dict[int, int]
    writes: dict[int, int]

    @property
    def bytes(self) -> int:
        """Bytes moved without caching."""
        return sum(self.reads.values()) + sum(self.writes.values())

    def seconds(self, card: Card, products: float = PRODUCT_SHARE, memory: float = MEMORY_SHARE) -> float:
        """Time on a GPU whose kernels reach these fractions of its peaks."""
        peak = {torch.bfloat16: card.bf16, torch.float16: card.bf16}.get(
            self.dtype, card.tf32 if "convolution" in self.name else card.fp32
        )
        return max(self.flop / (peak * products), self.bytes / (card.bandwidth * memory))


@dataclass
class Counter(TorchDispatchMode):
    """Records the operators executed inside, in order."""

    operators: list[Operator] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        # Keep storages alive, so that ids are not reused.
        self._storages: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.split("::")[-1]
        written = [a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments]
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if name not in _FREE and not views:
            given = [a for a, w in zip(args, written, strict=False) if w]
            results = self._bytes([out, *given])
            if results or name.startswith("_foreach"):
                flop = self._flop(func, name, args, kwargs, out)
                reads = self._bytes([args, kwargs])
                if name in _GATHERS:
                    # Count the selected rows, not the whole table.
                    table = args[0].untyped_storage()._cdata
                    reads[table] = min(reads[table], sum(results.values()))
                first = next(
                    (t.dtype for t in tree_leaves(args) if isinstance(t, Tensor) and t.is_floating_point()), None
                )
                self.operators.append(Operator(name, flop, first or torch.float32, reads, results))
        return out

    def _bytes(self, found: Any) -> dict[int, int]:
        """Bytes by storage; expanded tensors are read once."""
        out: dict[int, int] = {}
        for t in tree_leaves(found):
            if isinstance(t, Tensor):
                storage = t.untyped_storage()
                self._storages.append(storage)
                size = min(t.numel() * t.element_size(), storage.nbytes())
                out[storage._cdata] = max(out.get(storage._cdata, 0), size)
        return out

    @staticmethod
    def _flop(func: Any, name: str, args: Any, kwargs: Any, out: Any) -> float:
        if name == _ATTENTION:
            return flop_counter.sdpa_flop_count(*(a.shape for a in args[:3]))
        if name == f"{_ATTENTION}_backward":
            return flop_counter.sdpa_backward_flop_count(*(a.shape for a in args[:4]))
        count = flop_counter.flop_registry.get(func._overloadpacket)
        return 0.0 if count is None else count(*args, **kwargs, out_val=out)


def fused(operators: Sequence[Operator]) -> list[Operator]:
    """Group operators as a compiler would: each run of operators without products becomes one kernel.

    A kernel reads inputs from outside the group and writes values that are read later or never; intermediate values are
    free. This is an upper bound of the gain of ``torch.compile``, whose groups also end at reductions.
    """
    last_read: dict[int, int] = {}
    for n, op in enumerate(operators):
        last_read.update(dict.fromkeys(op.reads, n))
    out: list[Operator] = []
    start = 0
    while start < len(operators):
        end = start
        while end < len(operators) and not operators[end].flop:
            end += 1
        if end == start:
            out.append(operators[start])
            start += 1
            continue
        reads: dict[int, int] = {}
        writes: dict[int, int] = {}
        for op in operators[start:end]:
            for key, size in op.reads.items():
                if key not in writes:
                    reads[key] = max(reads.get(key, 0), size)
            for key, size in op.writes.items():
                writes[key] = max(writes.get(key, 0), size)
        kept = {k: v for k, v in writes.items() if last_read.get(k, end) >= end}
        out.append(Operator("fused", 0.0, operators[start].dtype, reads, kept))
        start = end
    return out


def estimate(operators: Sequence[Operator], card: Card) -> dict[str, float]:
    """Estimated time of operators executed one after the other.

    Returns:
        ``milliseconds`` at the assumed fractions of the peaks and ``bound_milliseconds`` at the peaks; of the former,
        ``product_milliseconds`` in operators with products; ``share_of_peak`` of bf16 products.
    """
    seconds = sum(op.seconds(card) for op in operators)
    arithmetic = sum(op.seconds(card) for op in operators if op.flop)
    flop = sum(op.flop for op in operators)
    return {
        "milliseconds": 1e3 * seconds,
        "bound_milliseconds": 1e3 * sum(op.seconds(card, 1.0, 1.0) for op in operators),
        "product_milliseconds": 1e3 * arithmetic,
        "share_of_peak": flop / seconds / card.bf16,
    }


def by_operator(operators: Sequence[Operator], card: Card, most: int = 12) -> list[dict[str, Any]]:
    """Calls, FLOPs, bytes and milliseconds by operator name and precision, slowest first."""
    rows: dict[tuple[str, torch.dtype], list[float]] = defaultdict(lambda: [0, 0.0, 0.0, 0.0])
    for op in operators:
        for n, value in enumerate((1, op.flop, op.bytes, 1e3 * op.seconds(card))):
            rows[op.name, op.dtype][n] += value
    ordered = sorted(rows.items(), key=lambda r: -r[1][3])[:most]
    keys = ("calls", "flop", "bytes", "milliseconds")
    return [
        {"operator": name, "dtype": str(dtype).removeprefix("torch."), **dict(zip(keys, values, strict=True))}
        for (name, dtype), values in ordered
    ]


class FakeSaved:
    """Count bytes that autograd saves for the backward pass, each storage once; for fake tensors without addresses."""

    def __enter__(self) -> FakeSaved:
        """Start counting."""
        self._kept: dict[int, Any] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x)
        self._hooks.__enter__()
        return self

    def _pack(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        self._kept[storage._cdata] = storage
        return x

    def __exit__(self, *error: Any) -> None:
        """Stop."""
        self._hooks.__exit__(*error)
        self.gib = sum(s.nbytes() for s in self._kept.values()) / 2**30


def record(step: Callable[[], Any]) -> tuple[list[Operator], float]:
    """Operators of a step with :class:`CudaAutocast`, and GiB saved by its forward pass."""
    with Counter() as counter, CudaAutocast(), FakeSaved() as saved:
        step()
    return counter.operators, saved.gib
