"""Loading of torch files and pickles without running pickled code.

``torch.load`` is only ever called with ``weights_only=True`` and an allow-list for the plain-data classes that
MMEngine writes into its checkpoints. Other pickles (the refer toolbox, CIFAR) may hold plain data, and arrays where
they are asked for.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

import numpy as np

from smartclip_det.core.errors import UserError

if TYPE_CHECKING:
    import torch


def _history_method(owner: Any, name: str) -> Any:
    """What pickled MMEngine histories use ``getattr`` for, and nothing else: their four statistics."""
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise pickle.UnpicklingError(f"getattr({owner!r}, {name!r}) is no statistic of a HistoryBuffer")
    return getattr(owner, name)


def _mmengine_globals() -> list[Any]:
    """Plain-data classes of MMEngine's message hub and numpy, absent where MMEngine is not installed."""
    import numpy as np

    allowed: list[Any] = [np.ndarray, np.dtype, *{type(np.dtype(c)) for c in "?bBhHiIlLqQefdSU"}]
    multiarray = getattr(np, "_core", None) or np.core
    reconstruct = multiarray.multiarray._reconstruct
    scalar = multiarray.multiarray.scalar
    # numpy renamed its core package: files of both ages name the same two functions differently.
    allowed += [
        reconstruct,
        scalar,
        (reconstruct, "numpy.core.multiarray._reconstruct"),
        (scalar, "numpy.core.multiarray.scalar"),
    ]
    try:
        from mmengine.config import ConfigDict
        from mmengine.logging import HistoryBuffer
    except ImportError:
        return allowed
    return [*allowed, HistoryBuffer, ConfigDict, (_history_method, "builtins.getattr")]


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive (told by its code folder)."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in n or n.endswith("constants.pkl") for n in archive.namelist())
    except Exception as error:
        raise UserError(f"{path} is a broken archive; it may be cut short. ({error})") from error


#: Torch stores weights as they are and packs source text only; a zip that claims more than so many times its size is
#: made to fill memory.
_MOST_INFLATED = 20


def check_zip(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse a zip whose records claim far more than the file has.

    Raises:
        UserError: with both sizes.
    """
    claimed, there = sum(i.file_size for i in archive.infolist()), path.stat().st_size
    if claimed > _MOST_INFLATED * there + 2**20:
        raise UserError(f"{path} has {there} bytes and claims to hold {claimed}: it was not unpacked.")


def safe_torch_load(path: str | Path | IO[bytes], map_location: Any = "cpu") -> Any:
    """What a ``torch.save`` file or stream holds, with no pickled code executed.

    Raises:
        UserError: when the file is missing, broken, or holds objects other than plain data.
    """
    import torch

    if isinstance(path, str | Path):
        path = Path(path)
        if not path.is_file():
            raise UserError(f"No file at {path}. Check the path; weights are never downloaded.")
    try:
        if isinstance(path, Path) and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                check_zip(archive, path)
        with torch.serialization.safe_globals(_mmengine_globals()):
            return torch.load(path, map_location=map_location, weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise _holds_objects(path, error) from error
    except Exception as error:  # a broken file fails in any way the unpickler or zip reader happens to
        first = str(error).strip().split("\n")[0]
        raise UserError(f"{path} is not a readable torch file; it may be cut short. ({first[:200]})") from error


def safe_url_load(
    url: str,
    model_dir: str | None = None,
    map_location: Any = None,
    progress: bool = True,
    check_hash: bool = False,
    file_name: str | None = None,
) -> Any:
    """:func:`torch.hub.load_state_dict_from_url` without running pickled code; MMEngine's ``https://`` checkpoints.

    Raises:
        UserError: when the file holds objects other than plain data.
    """
    import torch

    try:
        with torch.serialization.safe_globals(_mmengine_globals()):
            return torch.hub.load_state_dict_from_url(
                url, model_dir, map_location, progress, check_hash, file_name, weights_only=True
            )
    except pickle.UnpicklingError as error:
        raise _holds_objects(url, error) from error


def _holds_objects(source: Any, error: Exception) -> UserError:
    first = str(error).strip().split("\n")[0]
    return UserError(
        f"{source} holds pickled objects other than plain tensors, numbers and text, or is no torch file; it was "
        f"not loaded because that could run code. Save its state dict alone. ({first[:200]})"
    )


def safe_safetensors_load(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; a broken one is a :class:`UserError`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as handle:
            tensors = {k: handle.get_tensor(k) for k in handle.keys()}  # noqa: SIM118 (no mapping)
            return tensors, dict(handle.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file; it may be cut short. ({error})") from error


def _old_bytes(text: str, encoding: str) -> bytes:
    """Bytes as Python 3 writes them for Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding!r}")
    return text.encode("latin1")


class DataUnpickler(pickle._Unpickler):
    """Lists, dicts, strings and numbers; any class or function is refused, but for those of ``allowed``.

    Python's own implementation, not the one in C: there a damaged length or memo index takes gigabytes before it is
    found to be wrong.
    """

    stack: list[Any]
    allowed: ClassVar[dict[tuple[str, str], Any]] = {("_codecs", "encode"): _old_bytes}
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    # Makes room before it looks whether the bytes are there; nothing that is read here has it.
    dispatch.pop(pickle.BYTEARRAY8[0])

    def find_class(self, module: str, name: str) -> Any:
        """What a global of the pickle stands for."""
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}")
        return self.allowed[module, name]

    def set_state(self, owner: Any, state: Any) -> None:
        """What a pickle says of an object after it is made; classes and functions must stay as they are."""
        raise pickle.UnpicklingError(f"the pickle sets the state of a {type(owner).__name__}")

    def _load_build(self) -> None:
        state = self.stack.pop()
        self.set_state(self.stack[-1], state)

    dispatch[pickle.BUILD[0]] = _load_build


class _ArrayMark:
    """Stands for ``numpy.ndarray`` in pickles: named, never called."""


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """What numpy's ``_reconstruct`` makes before the state is set; a pickle by numpy always asks for no elements."""
    if kind is not _ArrayMark or tuple(shape) != (0,):
        raise pickle.UnpicklingError("an array that numpy did not write")
    return np.empty(0, np.int8)


class _ArrayUnpickler(DataUnpickler):
    """Numpy arrays as well, as numpy of any age pickles them."""

    allowed: ClassVar[dict[tuple[str, str], Any]] = {
        **DataUnpickler.allowed,
        ("numpy", "ndarray"): _ArrayMark,
        ("numpy", "dtype"): np.dtype,
        # numpy renamed its core package: files of both ages name the same function differently.
        ("numpy.core.multiarray", "_reconstruct"): _empty_array,
        ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    }

    def set_state(self, owner: Any, state: Any) -> None:
        """Arrays and their types check what they are given against the bytes that are there."""
        if not isinstance(owner, np.ndarray | np.dtype):
            super().set_state(owner, state)
        if isinstance(owner, np.ndarray) and state[2].hasobject:
            raise pickle.UnpicklingError("an array of objects")
        owner.__setstate__(state)


def load_plain_pickle(path: str | Path, arrays: bool = False) -> Any:
    """Read a pickle of plain data (Python 2 or 3) without running anything in it.

    Args:
        path: the file.
        arrays: whether it may hold numpy arrays.

    Raises:
        UserError: when the file is missing, broken, or asks for a class or function.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No pickle file at {path}. Check the path.")
    reader = _ArrayUnpickler if arrays else DataUnpickler
    try:
        content = path.read_bytes()
        if not arrays:
            # Byte strings of Python 2 are UTF-8 as a rule; in Latin-1 their letters would fall apart.
            with contextlib.suppress(UnicodeDecodeError):
                return reader(io.BytesIO(content), encoding="utf-8").load()
        return reader(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle fails in any way the unpickler happens to
        raise UserError(
            f"{path} is no pickle of plain data, or it is damaged ({type(error).__name__}: {str(error)[:200]}); "
            "nothing in it was run."
        ) from error
