"""A simulated GPU: tensors have a location, host or card, while all arithmetic runs on the CPU.

Inside ``with PretendedCard() as card``, ``cuda`` is a device that tensors can be moved to, even without a GPU.
What a GPU would reject is a **fault**: an operator on tensors of both locations, numpy of a card tensor. What would
synchronise the host with the card is a **wait**: reading a number, data-dependent shapes, blocking copies. Both are
reported with the line of this package that caused them, and the library's line below it.

Limits: tensors created in C++ without inputs (which C++ code may create on the card) are assumed to be where they are
first used; copies with ``non_blocking=True`` to the card are assumed to start from pinned memory.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import smartclip_det

HOST, CARD = torch.device("cpu"), torch.device("cuda", 0)
_PACKAGE = str(Path(smartclip_det.__file__).parent)
_LIBRARIES = ("mmengine", "mmdet", "mmcv", "torchvision", "torch/optim", "torch/nn/utils", "transformers")
#: Operators that make the host read their result or its shape.
_READS = frozenset(
    {
        "_local_scalar_dense",
        "is_nonzero",
        "equal",
        "nonzero",
        "masked_select",
        "unique_dim",
        "unique_consecutive",
        "_unique2",
        "bincount",
        "nms",
        "linalg_svd",
        "_linalg_svd",
        "_linalg_eigh",
        "linalg_eig",
        "_linalg_solve_ex",
    }
)
_INDEXING = frozenset({"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"})
#: Operators that do not access a tensor's values.
_LOOKS = frozenset({"detach", "alias", "set_", "lift_fresh", "is_same_size", "_to_copy", "sym_size", "sym_stride"})
#: These reject even a scalar of the host.
_STRICT = frozenset({"cat", "stack", "mm", "bmm", "addmm"})
_MAKERS = (
    "arange",
    "empty",
    "eye",
    "full",
    "linspace",
    "normal",
    "ones",
    "rand",
    "randint",
    "randn",
    "randperm",
    "scalar_tensor",
    "zeros",
)
_LIKE = ("empty_like", "full_like", "ones_like", "rand_like", "randn_like", "randint_like", "zeros_like")
_NEW = ("new_empty", "new_full", "new_ones", "new_zeros")


@dataclass
class Report:
    """Events, each ``what @ our line < library's line`` with its count."""

    faults: Counter = field(default_factory=Counter)
    waits: Counter = field(default_factory=Counter)

    @property
    def own_waits(self) -> int:
        """Waits caused directly by a line of this package, not through a library."""
        return sum(n for line, n in self.waits.items() if " < " not in line and "@ -" not in line)

    def __str__(self) -> str:
        parts = [("fault", self.faults), ("wait", self.waits)]
        return "\n".join(f"{kind} {n:4d}  {line}" for kind, found in parts for line, n in found.most_common())


def _place(device: Any) -> torch.device:
    return CARD if torch.device(device).type == "cuda" else HOST


def _line() -> str:
    """The innermost line of ours, and the library's line below it if a library caused the event."""
    frame, library = sys._getframe(3), ""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_PACKAGE):
            return f"{name[len(_PACKAGE) + 1 :]}:{frame.f_lineno}{library}"
        if not library and "site-packages/" in name:
            inside = name.rsplit("site-packages/", 1)[1]
            if inside.startswith(_LIBRARIES):
                library = f" < {inside}:{frame.f_lineno}"
        frame = frame.f_back
    return f"-{library}"


class PretendedCard(TorchDispatchMode):
    """Dispatch mode; :attr:`seen` is the report, :meth:`watch` reports on a block."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = Report()
        # By storage; None: created without inputs, so located wherever it is first used. Storages are kept alive: a
        # reused address would inherit the location of the freed tensor.
        self._places: dict[int, tuple[torch.device | None, Any]] = {}

    @contextlib.contextmanager
    def watch(self) -> Iterator[Report]:
        """Report the events inside the block."""
        before, self.seen = self.seen, Report()
        try:
            yield self.seen
        finally:
            self.seen = before

    # --- where a tensor is

    def where(self, x: torch.Tensor) -> torch.device | None:
        """Location of a tensor; None if only its first use determines it."""
        if x.layout != torch.strided:
            return HOST
        return self._places.get(x.untyped_storage()._cdata, (HOST, None))[0]

    def put(self, x: Any, place: torch.device | None) -> Any:
        """Set the location of the tensors of ``x``."""
        for t in tree_leaves(x):
            if isinstance(t, torch.Tensor) and t.layout == torch.strided:
                storage = t.untyped_storage()
                self._places[storage._cdata] = (place, storage)
        return x

    def _wait(self, what: str) -> None:
        self.seen.waits[f"{what} @ {_line()}"] += 1

    def _fault(self, what: str) -> None:
        self.seen.faults[f"{what} @ {_line()}"] += 1

    def move(self, x: torch.Tensor, place: torch.device, cast: Callable[[Any], Any], beside: bool = False) -> Any:
        """Move a tensor; a copy to the card with ``beside`` (non-blocking) is not a wait."""
        here, out = self.where(x), cast(x)
        if (here or place) == place:
            return self.put(out, place) if here is None else out
        if out.untyped_storage()._cdata == x.untyped_storage()._cdata:
            out = out.clone()
        if place == HOST or not beside:
            self._wait("copy to the card" if place == CARD else "copy to the host")
        return self.put(out, place)

    # --- operators

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            places = [self.where(t) for t in tensors]
            name = func._schema.name.split("::")[-1]
            on_card = CARD in places
            if on_card:
                self._look(func, name, args, tensors, places)
                self.put([t for t, p in zip(tensors, places, strict=True) if p is None], CARD)
            out = func(*args, **kwargs)
            given = {t.untyped_storage()._cdata for t in tensors if t.layout == torch.strided}
            fresh = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.layout == torch.strided]
            target = None if not tensors else CARD if on_card else HOST
            self.put([t for t in fresh if t.untyped_storage()._cdata not in given], target)
            return out

    def _look(self, func: Any, name: str, args: Any, tensors: list[Any], places: list[Any]) -> None:
        stray = [t for t, p in zip(tensors, places, strict=True) if p == HOST and (t.dim() > 0 or name in _STRICT)]
        if name == "copy_":
            if (
                places[0] != places[1]
                and None not in places[:2]
                and not (len(args) > 2 and args[2] and places[0] == CARD)
            ):
                self._wait("copy to the card" if places[0] == CARD else "copy to the host")
        elif stray and name in _INDEXING and places[0] == CARD:
            self._wait(f"{name} by an index of the host")
        elif stray and name not in _LOOKS:
            self._fault(f"{name} with {[list(t.shape) for t in stray][:2]} of the host")
        if name in _READS or (name == "repeat_interleave" and func._overloadname == "Tensor"):
            self._wait(name)
        if name in _INDEXING:
            flags = [i for i in args[1] or [] if isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8)]
            # Assignment of a scalar by a boolean mask becomes masked_fill.
            if flags and (name in ("index", "_unsafe_index") or args[2].dim() > 0):
                self._wait(f"{name} by flags")

    # --- what Python code sees of devices

    def __enter__(self) -> PretendedCard:
        with contextlib.ExitStack() as stack:
            self._patch(stack)
            super().__enter__()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    def _patch(self, stack: contextlib.ExitStack) -> None:
        me, tensor = self, torch.Tensor

        def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
            own, before = name in vars(owner), getattr(owner, name)
            setattr(owner, name, make(before))
            stack.callback(lambda: setattr(owner, name, before) if own else delattr(owner, name))

        def on_card(x: Any) -> bool:
            return me.where(x) == CARD

        for name, value in (
            ("device", lambda x: CARD if on_card(x) else HOST),
            ("is_cuda", on_card),
            ("is_cpu", lambda x: not on_card(x)),
        ):
            replace(tensor, name, lambda _, value=value: property(value))
        replace(tensor, "get_device", lambda _: lambda x: 0 if on_card(x) else -1)
        replace(tensor, "to", lambda _: lambda x, *a, **k: me._to(x, *a, **k))
        replace(tensor, "cpu", lambda _: lambda x, *a, **k: me.move(x, HOST, lambda y: y))
        replace(
            tensor, "cuda", lambda _: lambda x, *a, non_blocking=False, **k: me.move(x, CARD, lambda y: y, non_blocking)
        )

        def reading(what: str, fault: bool) -> Callable[[Any], Any]:
            def make(before: Any) -> Any:
                def read(x: Any, *a: Any, **k: Any) -> Any:
                    if on_card(x):
                        (me._fault if fault else me._wait)(what)
                    return before(x, *a, **k)

                return read

            return make

        for name, fault in (("numpy", True), ("__array__", True), ("tolist", False)):
            replace(tensor, name, reading(f"{name} of the card", fault))
        replace(tensor, "__deepcopy__", lambda before: lambda x, memo: me._copied(before, x, memo))
        for name in _NEW:
            replace(
                tensor,
                name,
                lambda before: (
                    lambda x, *a, device=None, **k: me.put(
                        before(x, *a, **k), me.where(x) if device is None else _place(device)
                    )
                ),
            )
        replace(
            tensor,
            "new_tensor",
            lambda before: (
                lambda x, data, *a, device=None, **k: me._from_host(
                    before(x, data, *a, **k), (me.where(x) or HOST) if device is None else _place(device), "new_tensor"
                )
            ),
        )
        for name in _MAKERS:
            replace(
                torch,
                name,
                lambda before: (
                    lambda *a, device=None, **k: me.put(before(*a, **k), HOST if device is None else _place(device))
                ),
            )
        for name in _LIKE:
            replace(
                torch,
                name,
                lambda before: (
                    lambda x, *a, device=None, **k: me.put(
                        before(x, *a, **k), me.where(x) if device is None else _place(device)
                    )
                ),
            )
        for name in ("tensor", "as_tensor"):
            replace(torch, name, lambda before, name=name: self._reader(before, name))
        cast = torch.amp.autocast_mode.autocast
        replace(
            cast,
            "__init__",
            lambda before: (
                lambda s, device_type, *a, **k: before(s, "cpu" if device_type == "cuda" else device_type, *a, **k)
            ),
        )

    def _copied(self, before: Any, x: torch.Tensor, memo: Any) -> Any:
        with self.watch():  # bytes are copied in place
            return self.put(before(x, memo), self.where(x))

    def _to(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """``Tensor.to`` with any signature."""
        native = torch._C.TensorBase.to
        device, beside = kwargs.pop("device", None), kwargs.pop("non_blocking", False)
        if args and isinstance(args[0], torch.Tensor):
            return self.move(x, self.where(args[0]) or HOST, lambda y: native(y, args[0].dtype), beside)
        if args and (args[0] is None or isinstance(args[0], torch.device | str | int)):
            device, args = args[0], args[1:]
        flags = [a for a in args if isinstance(a, bool)]
        args = tuple(a for a in args if a is not None and not isinstance(a, bool))
        beside = beside or bool(flags and flags[0])

        def same(y: torch.Tensor) -> torch.Tensor:
            return native(y, *args, **kwargs) if args or kwargs else y

        return same(x) if device is None else self.move(x, _place(device), same, beside)

    def _from_host(self, out: torch.Tensor, place: torch.device, what: str) -> torch.Tensor:
        if place == CARD:
            self._wait(what)
        return self.put(out, place)

    def _reader(self, before: Any, name: str) -> Any:
        def read(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Any:
            if isinstance(data, torch.Tensor):
                place = self.where(data) or HOST
                return self.move(
                    data, place if device is None else _place(device), lambda y: before(y, *args, **kwargs)
                )
            if any(isinstance(v, torch.Tensor) and self.where(v) == CARD for v in tree_leaves(data)):
                self._wait(f"{name} of the card's numbers")
            out = before(data, *args, **kwargs)
            return self._from_host(out, HOST if device is None else _place(device), name)

        return read
