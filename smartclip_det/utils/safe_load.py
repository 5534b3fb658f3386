"""Loading of torch files and pickles without running pickled code.

``torch.load`` is only ever called with ``weights_only=True`` and an allow-list for the plain-data classes that
MMEngine writes into its checkpoints. Other pickles (the refer toolbox, CIFAR) may hold plain data, and arrays where
they are asked for.
"""

from __future__ import annotations

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
        with torch.serialization.safe_globals(_mmengine_globals()):
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise _holds_objects(path, error) from error
    except Exception as error:  # a broken file fails in any way the unpickler or zip reader happens to
        first = str(error).strip().split("\n")[0]
        raise UserError(f"{path} is not a readable torch file; it may be cut short. ({first[:200]})") from error


def safe_url_load(
    url: str, model_dir: str | None = None, map_location: Any = None, progress: bool = True, check_hash: bool = False,
    file_name: str | None = None,
) -> Any:  # fmt: skip
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


class _PlainUnpickler(pickle.Unpickler):
    """Lists, dicts, strings and numbers; any class or function is refused, but for those of ``allowed``."""

    allowed: ClassVar[dict[tuple[str, str], Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}")
        return self.allowed[module, name]


class _ArrayUnpickler(_PlainUnpickler):
    """Numpy arrays as well, as numpy of any age pickles them."""

    allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        # numpy renamed its core package: files of both ages name the same function differently.
        ("numpy.core.multiarray", "_reconstruct"): np.array([]).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.array([]).__reduce__()[0],
    }


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
    reader = _ArrayUnpickler if arrays else _PlainUnpickler
    try:
        with path.open("rb") as handle:
            if not arrays:
                # Byte strings of Python 2 are UTF-8 as a rule; in Latin-1 their letters would fall apart.
                try:
                    return reader(handle, encoding="utf-8").load()
                except UnicodeDecodeError:
                    handle.seek(0)
            return reader(handle, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is no pickle of plain data ({error}); nothing in it was run.") from error
