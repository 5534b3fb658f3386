"""Room on the disk: asked before, and known when it runs out."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from smartclip_det.core.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full_disk(error: BaseException) -> bool:
    """Whether an error is the file system's refusal to take more."""
    return isinstance(error, OSError) and error.errno in _FULL


def free_bytes(folder: Path) -> int:
    """Room where a folder is, or will be."""
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free


def refuse_full_disk(size: int | None, folder: Path, what: object, advice: str) -> None:
    """Before bytes come for which there is no room; a size of None is not checked.

    Raises:
        UserError: telling what is needed and what is free.
    """
    free = free_bytes(folder)
    if size is not None and size > free:
        raise UserError(
            f"No space for {what}: {size / 1e6:,.1f} MB are needed in {folder}, {free / 1e6:,.1f} MB are free. {advice}"
        )
