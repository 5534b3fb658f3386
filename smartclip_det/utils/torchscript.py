"""Reading TorchScript archives as data: ``torch.jit.load`` would run the ``__setstate__`` of their modules.

An archive is a zip: ``data.pkl`` holds the module tree with its tensors, ``data/`` the tensor data, ``code/`` the
source text of the modules, ``constants.pkl`` the constants used in that text. The pickles are read by an unpickler
that only builds tensors, lists and dicts; the source text is only searched.
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

#: Limits on source text in bytes and on modules: far more than any CLIP has.
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
    """A module of an archive: its class name and its pickled state."""

    kind: ClassVar[str] = ""
    state: Any = None


@dataclass(frozen=True)
class ScriptArchive:
    """Content of an archive.

    Attributes:
        tensors: parameters and buffers by their state dict names.
        kinds: class of each module by path; ``""`` is the root.
        sources: source text of each class.
        constants: referred to in the text as ``CONSTANTS.c0`` and so on.
        opaque: paths of modules that only their own code could restore.
    """

    tensors: dict[str, Tensor]
    kinds: dict[str, str]
    sources: dict[str, str]
    constants: list[Any]
    opaque: list[str]


def read_torchscript(path: str | Path) -> ScriptArchive:
    """Read an archive without running any of its code.

    Raises:
        UserError: for a broken archive, or a pickle that contains anything but modules and tensors.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            check_zip(archive, path)
            return _read(archive)
    except UserError:
        raise
    except Exception as error:  # the unpickler and the zip reader raise all kinds of errors on broken archives
        raise UserError(
            f"{path} is not a TorchScript archive that can be read without running it, or it is cut short "
            f'({str(error)[:200]}). If you trust it: python -c "import torch; '
            f"torch.save(torch.jit.load('{path}', 'cpu').state_dict(), 'state.pt')\" and use state.pt."
        ) from error


def _read(archive: zipfile.ZipFile) -> ScriptArchive:
    names = archive.namelist()
    roots = [n.removesuffix("data.pkl") for n in names if n.count("/") <= 1 and n.endswith("data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"it has {len(roots)} data.pkl records")
    root = roots[0]
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("its data is big-endian")
    tree = _ArchiveUnpickler(archive, root, "data").load()
    if not isinstance(tree, ScriptModule):
        raise ValueError(f"it contains a {type(tree).__name__}, not a module")
    try:
        constants = list(_ArchiveUnpickler(archive, root, "constants").load())
    except (pickle.UnpicklingError, KeyError, ValueError, TypeError, RuntimeError):
        constants = []
    sources = dict(_sources(archive, f"{root}code/"))
    tensors: dict[str, Tensor] = {}
    kinds: dict[str, str] = {}
    opaque: list[str] = []
    for name, module in _walk(tree):
        kinds[name] = module.kind
        if not isinstance(module.state, dict):
            opaque.append(name)
            continue
        listed = _listed(sources.get(module.kind, ""))
        for key, value in module.state.items():
            if isinstance(value, Tensor) and (listed is None or key in listed):
                tensors[f"{name}.{key}" if name else key] = value
    return ScriptArchive(tensors, kinds, sources, constants, opaque)


def _walk(tree: ScriptModule) -> Iterator[tuple[str, ScriptModule]]:
    """Modules and their paths, parents first."""
    waiting, seen = [("", tree)], 0
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
    """Source text of each class, by its name in the pickles."""
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
            match = re.match(r"class (\w+)", part)
            yield f"{module}.{match[1]}" if match else module, part


def _listed(source: str) -> set[str] | None:
    """Names of the parameters and buffers of a class, or None if its text does not list them."""
    rows = re.findall(r"^  __(?:parameters|buffers)__ = \[(.*)\]", source, flags=re.MULTILINE)
    return {n for row in rows for n in re.findall(r'"([^"]*)"', row)} if rows else None


def activation_of(archive: ScriptArchive, towers: dict[str, str]) -> dict[str, set[str]]:
    """Activations named in the source text of each tower's modules.

    Args:
        archive: the archive.
        towers: maps a tower name to a regular expression for the paths of its modules.

    Returns:
        For each tower a set of ``quick_gelu``, ``gelu`` and ``gelu_tanh``.
    """
    by_kind = {kind: _activations(text, archive.constants) for kind, text in archive.sources.items()}
    out = {}
    for tower, pattern in towers.items():
        kinds = {k for path, k in archive.kinds.items() if re.match(pattern, path)}
        out[tower] = set().union(*(by_kind.get(k, set()) for k in kinds))
    # Plain functions belong to no module: if no class of a tower names an activation, use the whole text.
    everywhere = set().union(*by_kind.values())
    return {tower: activations or everywhere for tower, activations in out.items()}


def _activations(text: str, constants: list[Any]) -> set[str]:
    for index in {int(n) for n in re.findall(r"\bCONSTANTS\.c(\d+)", text)}:
        value = constants[index] if index < len(constants) else None
        if isinstance(value, Tensor) and value.numel() == 1:
            text = re.sub(rf"\bCONSTANTS\.c{index}\b", repr(float(value)), text)
    activations = set()
    if re.search(r"\bsigmoid_?\(", text) and any(abs(float(n) - 1.702) < 1e-3 for n in re.findall(r"\d\.\d+", text)):
        activations.add("quick_gelu")
    for call in re.findall(r"torch\.gelu_?\([^\n]*", text):
        activations.add("gelu_tanh" if "tanh" in call else "gelu")
    return activations


def _rebuild(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if not isinstance(storage, Tensor):
        raise pickle.UnpicklingError("a tensor without storage")
    # as_strided checks the bounds of the storage.
    return storage.as_strided(size, stride, offset)


class _ArchiveUnpickler(DataUnpickler):
    """Builds modules as :class:`ScriptModule`, tensors, lists and dicts."""

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
                raise pickle.UnpicklingError(f"a storage of unknown type ({kind})")
            self._storages[key] = _numbers(self._archive.read(f"{self._folder}{key}"), kind)
        storage = self._storages[key]
        if len(storage) < count:
            raise pickle.UnpicklingError(f"record {key} has {len(storage)} elements instead of {count}")
        return storage


def _numbers(content: bytes, kind: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=kind) if content else torch.empty(0, dtype=kind)
