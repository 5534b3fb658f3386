"""TorchScript archives read as data: ``torch.jit.load`` would run what a module's ``__setstate__`` says.

An archive is a zip: ``data.pkl`` holds the tree of modules with their tensors, ``data/`` the numbers, ``code/`` the
source text of the modules, ``constants.pkl`` what that text names. The pickles go through an unpickler that builds
tensors, lists and dicts and nothing else; the text is only looked at.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from smartclip_det.core.errors import UserError
from smartclip_det.utils.safe_load import DataUnpickler, check_zip

#: Bytes of source text that are looked at, and modules that are walked through: far more than any CLIP has.
_MOST_TEXT, _MOST_MODULES = 64 * 2**20, 100_000
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class ScriptModule:
    """A module of an archive: the name of its class, and what was pickled as its state."""

    kind: ClassVar[str] = ""
    state: Any = None


@dataclass(frozen=True)
class ScriptArchive:
    """What an archive holds.

    Attributes:
        tensors: parameters and buffers by their names in the state dict.
        kinds: class of each module by its path; ``""`` is the whole.
        sources: text of each class.
        constants: what the text calls ``CONSTANTS.c0`` and so on.
        opaque: paths of modules that only their own code could restore.
    """

    tensors: dict[str, Tensor]
    kinds: dict[str, str]
    sources: dict[str, str]
    constants: list[Any]
    opaque: list[str]


def read_torchscript(path: str | Path) -> ScriptArchive:
    """Read an archive without running anything of it.

    Raises:
        UserError: for broken archives, and pickles that ask for anything but modules and tensors.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            check_zip(archive, path)
            return _read(archive)
    except UserError:
        raise
    except Exception as error:  # a broken archive fails in any way the unpickler or zip reader happens to
        raise UserError(
            f"{path} is no TorchScript archive that can be read without running it, or it is cut short "
            f'({str(error)[:200]}). If you trust it: python -c "import torch; '
            f"torch.save(torch.jit.load('{path}', 'cpu').state_dict(), 'state.pt')\" and give state.pt."
        ) from error


def _read(archive: zipfile.ZipFile) -> ScriptArchive:
    names = archive.namelist()
    roots = [n.removesuffix("data.pkl") for n in names if n.count("/") <= 1 and n.endswith("data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"it has {len(roots)} records data.pkl")
    root = roots[0]
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("its numbers are big-endian")
    whole = _ArchiveUnpickler(archive, root, "data").load()
    if not isinstance(whole, ScriptModule):
        raise ValueError(f"it holds a {type(whole).__name__}, not a module")
    try:
        constants = list(_ArchiveUnpickler(archive, root, "constants").load())
    except (pickle.UnpicklingError, KeyError, ValueError, TypeError, RuntimeError):
        constants = []
    sources = dict(_sources(archive, f"{root}code/"))
    tensors: dict[str, Tensor] = {}
    kinds: dict[str, str] = {}
    opaque: list[str] = []
    for name, module in _walk(whole):
        kinds[name] = module.kind
        if not isinstance(module.state, dict):
            opaque.append(name)
            continue
        listed = _listed(sources.get(module.kind, ""))
        for key, value in module.state.items():
            if isinstance(value, Tensor) and (listed is None or key in listed):
                tensors[f"{name}.{key}" if name else key] = value
    return ScriptArchive(tensors, kinds, sources, constants, opaque)


def _walk(whole: ScriptModule) -> Iterator[tuple[str, ScriptModule]]:
    """Modules and their paths, outer ones first."""
    waiting, seen = [("", whole)], 0
    while waiting:
        name, module = waiting.pop()
        yield name, module
        seen += 1
        if seen > _MOST_MODULES:
            raise ValueError(f"it has more than {_MOST_MODULES} modules")
        if isinstance(module.state, dict):
            inner = [(k, v) for k, v in module.state.items() if isinstance(v, ScriptModule)]
            waiting += [(f"{name}.{k}" if name else str(k), v) for k, v in reversed(inner)]


def _sources(archive: zipfile.ZipFile, root: str) -> Iterator[tuple[str, str]]:
    """Text of each class, by the name that pickles call it."""
    left = _MOST_TEXT
    for name in archive.namelist():
        if not (name.startswith(root) and name.endswith(".py")):
            continue
        with archive.open(name) as handle:
            text = handle.read(left + 1)
        left -= len(text)
        if left < 0:
            raise ValueError(f"it has more than {_MOST_TEXT} bytes of source text")
        module = name[len(root) : -len(".py")].replace("/", ".")
        parts = re.split(r"^(?=class )", text.decode("utf-8", "replace"), flags=re.MULTILINE)
        for part in parts:
            found = re.match(r"class (\w+)", part)
            yield f"{module}.{found[1]}" if found else module, part


def _listed(source: str) -> set[str] | None:
    """Names of a class's parameters and buffers, or None where its text does not tell."""
    rows = re.findall(r"^  __(?:parameters|buffers)__ = \[(.*)\]", source, flags=re.MULTILINE)
    return {n for row in rows for n in re.findall(r'"([^"]*)"', row)} if rows else None


def activation_of(archive: ScriptArchive, towers: dict[str, str]) -> dict[str, set[str]]:
    """Activations that the source text of each tower's modules names.

    Args:
        archive: the archive.
        towers: name of a tower to a pattern that the paths of its modules match.

    Returns:
        For each tower a set of ``quick_gelu``, ``gelu`` and ``gelu_tanh``.
    """
    told = {kind: _activations(text, archive.constants) for kind, text in archive.sources.items()}
    out = {}
    for tower, pattern in towers.items():
        kinds = {k for path, k in archive.kinds.items() if re.match(pattern, path)}
        out[tower] = set().union(*(told.get(k, set()) for k in kinds))
    # Functions are no modules: where no class of a tower names one, the text as a whole may.
    everywhere = set().union(*told.values())
    return {tower: found or everywhere for tower, found in out.items()}


def _activations(text: str, constants: list[Any]) -> set[str]:
    for index in {int(n) for n in re.findall(r"\bCONSTANTS\.c(\d+)", text)}:
        value = constants[index] if index < len(constants) else None
        if isinstance(value, Tensor) and value.numel() == 1:
            text = re.sub(rf"\bCONSTANTS\.c{index}\b", repr(float(value)), text)
    found = set()
    if re.search(r"\bsigmoid_?\(", text) and any(abs(float(n) - 1.702) < 1e-3 for n in re.findall(r"\d\.\d+", text)):
        found.add("quick_gelu")
    for call in re.findall(r"torch\.gelu_?\([^\n]*", text):
        found.add("gelu_tanh" if "tanh" in call else "gelu")
    return found


def _rebuild(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if not isinstance(storage, Tensor):
        raise pickle.UnpicklingError("a tensor without numbers")
    # as_strided checks that the numbers are there.
    return storage.as_strided(size, stride, offset)


class _ArchiveUnpickler(DataUnpickler):
    """Modules as :class:`ScriptModule`, tensors, lists, dicts."""

    allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
        ("collections", "OrderedDict"): dict,
        ("torch.jit._pickle", "restore_type_tag"): lambda value, kind: value,
        **{("torch.jit._pickle", f"build_{n}list"): lambda values: values for n in ("int", "double", "bool", "tensor")},
    }
    built: ClassVar[dict[type, Callable[[Any, Any], None]]] = {}

    def __init__(self, archive: zipfile.ZipFile, root: str, name: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}{name}.pkl")))
        self._archive, self._folder = archive, f"{root}{name}/"
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module.split(".")[0] == "__torch__":
            return type("ScriptModule", (ScriptModule,), {"kind": f"{module}.{name}"})
        return super().find_class(module, name)

    def set_state(self, owner: Any, state: Any) -> None:
        if not isinstance(owner, ScriptModule):
            super().set_state(owner, state)
        owner.state = state

    def persistent_load(self, pid: Any) -> Tensor:
        _, kind, key, _, count = pid
        if key not in self._storages:
            if not isinstance(kind, torch.dtype):
                raise pickle.UnpicklingError(f"numbers of an unknown kind ({kind})")
            self._storages[key] = _numbers(self._archive.read(f"{self._folder}{key}"), kind)
        found = self._storages[key]
        if len(found) < count:
            raise pickle.UnpicklingError(f"record {key} has {len(found)} numbers, {count} are asked for")
        return found


def _numbers(content: bytes, kind: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=kind) if content else torch.empty(0, dtype=kind)
