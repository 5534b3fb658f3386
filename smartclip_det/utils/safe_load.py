"""Loading torch files and pickles without running pickled code.

``torch.load`` is always called with ``weights_only=True`` and an allow-list of the plain-data classes that MMEngine
writes into its checkpoints. Other pickles (the refer toolbox, CIFAR) may contain plain data, and numpy arrays on
request.
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
    """The only ``getattr`` that pickled MMEngine histories need: the four statistics of a HistoryBuffer."""
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise pickle.UnpicklingError(f"getattr({owner!r}, {name!r}) is not a statistic of a HistoryBuffer")
    return getattr(owner, name)


def _mmengine_globals() -> list[Any]:
    """Allowed classes of numpy and of MMEngine's message hub, if MMEngine is installed."""
    import numpy as np

    allowed: list[Any] = [np.ndarray, np.dtype, *{type(np.dtype(c)) for c in "?bBhHiIlLqQefdSU"}]
    multiarray = getattr(np, "_core", None) or np.core
    reconstruct = multiarray.multiarray._reconstruct
    scalar = multiarray.multiarray.scalar
    # numpy 2 renamed its core package: old and new files use different names for the same two functions.
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
    """Whether a file is a TorchScript archive, recognised by its code folder."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in n or n.endswith("constants.pkl") for n in archive.namelist())
    except Exception as error:
        raise UserError(f"{path} is a broken archive; it may be cut short. ({error})") from error


#: Torch stores weights uncompressed and compresses source text only. A zip that declares more than this multiple of
#: its size is a zip bomb.
_MOST_INFLATED = 20


def check_zip(archive: zipfile.ZipFile, path: Path) -> None:
    """Reject a zip whose declared content is far larger than the file.

    Raises:
        UserError: with both sizes.
    """
    declared, actual = sum(i.file_size for i in archive.infolist()), path.stat().st_size
    if declared > _MOST_INFLATED * actual + 2**20:
        raise UserError(f"{path} has {actual} bytes but declares {declared} uncompressed ones: it was not extracted.")


def safe_torch_load(path: str | Path | IO[bytes], map_location: Any = "cpu") -> Any:
    """Load a ``torch.save`` file or stream without executing pickled code.

    Raises:
        UserError: if the file is missing or broken, or contains anything but plain data.
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
    except Exception as error:  # the unpickler and the zip reader raise all kinds of errors on broken files
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
    """:func:`torch.hub.load_state_dict_from_url` without running pickled code, for MMEngine's ``https://`` checkpoints.

    Raises:
        UserError: if the file contains anything but plain data.
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
        f"{source} contains pickled objects other than tensors, numbers and text, or is not a torch file. It was "
        f"not loaded because that could run code. Save only its state dict. ({first[:200]})"
    )


def is_safetensors(path: Path) -> bool:
    """Whether a file is in the safetensors format: the length of a JSON header, then the header."""
    with path.open("rb") as handle:
        start = handle.read(9)
    # Little-endian uint64. A pickle or a zip archive starts with bytes that make a length of many gigabytes.
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size


def safe_safetensors_load(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; a broken file is a :class:`UserError`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as handle:
            tensors = {k: handle.get_tensor(k) for k in handle.keys()}  # noqa: SIM118 (no mapping)
            return tensors, dict(handle.metadata() or {})
    except FileNotFoundError as error:
        raise UserError(f"No file at {path}.") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file; it may be cut short. ({error})") from error


def _old_bytes(text: str, encoding: str) -> bytes:
    """Bytes, as Python 3 pickles them for Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding!r}")
    return text.encode("latin1")


class DataUnpickler(pickle._Unpickler):
    """Unpickles lists, dicts, strings and numbers; rejects classes and functions other than those in ``allowed``.

    Uses the pure Python unpickler: the C version allocates gigabytes for a corrupt length or memo index before it
    notices the error.
    """

    stack: list[Any]
    allowed: ClassVar[dict[tuple[str, str], Any]] = {("_codecs", "encode"): _old_bytes}
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    # BYTEARRAY8 allocates before checking that the bytes exist; no supported file uses it.
    dispatch.pop(pickle.BYTEARRAY8[0])

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a global of the pickle from the allow-list."""
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"the pickle refers to {module}.{name}")
        return self.allowed[module, name]

    def set_state(self, owner: Any, state: Any) -> None:
        """Apply the pickled state of an object; rejected here for all types."""
        raise pickle.UnpicklingError(f"the pickle sets the state of a {type(owner).__name__}")

    def _load_build(self) -> None:
        state = self.stack.pop()
        self.set_state(self.stack[-1], state)

    dispatch[pickle.BUILD[0]] = _load_build


class _ArrayMark:
    """Stands in for ``numpy.ndarray`` in pickles: referenced, never called."""


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """What numpy's ``_reconstruct`` returns before the state is set; numpy always pickles shape (0,) here."""
    if kind is not _ArrayMark or tuple(shape) != (0,):
        raise pickle.UnpicklingError("an array that numpy did not write")
    return np.empty(0, np.int8)


class _ArrayUnpickler(DataUnpickler):
    """Also allows numpy arrays, as pickled by any numpy version."""

    allowed: ClassVar[dict[tuple[str, str], Any]] = {
        **DataUnpickler.allowed,
        ("numpy", "ndarray"): _ArrayMark,
        ("numpy", "dtype"): np.dtype,
        # numpy 2 renamed its core package: old and new files use different names for the same function.
        ("numpy.core.multiarray", "_reconstruct"): _empty_array,
        ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    }

    def set_state(self, owner: Any, state: Any) -> None:
        """Set the state of arrays and dtypes; numpy checks it against the available bytes."""
        if not isinstance(owner, np.ndarray | np.dtype):
            super().set_state(owner, state)
        if isinstance(owner, np.ndarray) and state[2].hasobject:
            raise pickle.UnpicklingError("an array of objects")
        owner.__setstate__(state)


def load_plain_pickle(path: str | Path, arrays: bool = False) -> Any:
    """Read a pickle of plain data (Python 2 or 3) without running anything in it.

    Args:
        path: the file.
        arrays: whether numpy arrays are allowed.

    Raises:
        UserError: if the file is missing or broken, or refers to a class or function.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No pickle file at {path}. Check the path.")
    reader = _ArrayUnpickler if arrays else DataUnpickler
    try:
        content = path.read_bytes()
        if not arrays:
            # Python 2 byte strings are usually UTF-8; decoded as Latin-1 they would turn into mojibake.
            with contextlib.suppress(UnicodeDecodeError):
                return reader(io.BytesIO(content), encoding="utf-8").load()
        return reader(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # the unpickler raises all kinds of errors on corrupt files
        raise UserError(
            f"{path} is not a pickle of plain data, or is corrupt ({type(error).__name__}: {str(error)[:200]}); "
            "no code in it was run."
        ) from error
