"""Free disk space: checks before writing, and recognising the error when it runs out."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from smartclip_det.core.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full_disk(error: BaseException) -> bool:
    """Whether an error means that the file system is full or over quota."""
    return isinstance(error, OSError) and error.errno in _FULL


def free_bytes(folder: Path) -> int:
    """Free bytes on the file system of a folder that may not exist yet."""
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free


def refuse_full_disk(size: int | None, folder: Path, what: object, advice: str) -> None:
    """Fail early if there is not enough space for ``size`` bytes; None is not checked.

    Raises:
        UserError: with the needed and the free space.
    """
    free = free_bytes(folder)
    if size is not None and size > free:
        raise UserError(
            f"No space for {what}: {size / 1e6:,.1f} MB needed in {folder}, {free / 1e6:,.1f} MB free. {advice}"
        )
