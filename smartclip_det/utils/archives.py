"""Safe extraction of zip and tar archives: nothing is written outside the target folder."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from smartclip_det.core.errors import UserError
from smartclip_det.utils.disk import is_full_disk, refuse_full_disk

Member = tuple[str, int, bool, Callable[[], IO[bytes] | None]]


def unpack(archive: Path, folder: Path) -> int:
    """Extract a zip or tar file; files that already exist with the right size are skipped.

    Returns:
        Number of files in the archive.

    Raises:
        UserError: for a broken archive, members outside the folder, links, or a full disk.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                refuse_full_disk(
                    _missing(opened, folder), folder, f"the contents of {archive.name}", "Free some space."
                )
                return _write(_zipped(opened), archive, folder, len(opened.infolist()))
        with tarfile.open(archive) as opened_tar:
            return _write(_tarred(opened_tar), archive, folder, None)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{archive} is incomplete or corrupt ({error}). Remove it and run the same command again."
        ) from error
    except OSError as error:
        if not is_full_disk(error):
            raise
        raise UserError(
            f"The disk is full; {archive.name} was extracted in part. Free some space and run the same command again."
        ) from error


def _missing(opened: zipfile.ZipFile, folder: Path) -> int:
    return sum(i.file_size for i in opened.infolist() if not _is_there(folder / i.filename, i.file_size))


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _zipped(opened: zipfile.ZipFile) -> Iterator[Member]:
    for info in opened.infolist():
        # The upper 16 bits of the attributes are the Unix mode: 0o120000 is a symbolic link.
        link = (info.external_attr >> 16) & 0o170000 == 0o120000
        if not info.is_dir():
            yield info.filename, info.file_size, link, lambda info=info: opened.open(info)  # type: ignore[misc]


def _tarred(opened: tarfile.TarFile) -> Iterator[Member]:
    for info in opened:
        if not info.isdir():
            yield info.name, info.size, not info.isreg(), lambda info=info: opened.extractfile(info)  # type: ignore[misc]


def _write(members: Iterator[Member], archive: Path, folder: Path, total: int | None) -> int:
    count = 0
    for name, size, special, read in tqdm(members, desc=f"extracting {archive.name}", unit="file", total=total):
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or special:
            kind = "is a link or device" if special else "would be written outside the folder"
            raise UserError(f"{archive}: {name!r} {kind}. Extraction stopped; do not use this archive.")
        count += 1
        target = folder / parts
        if _is_there(target, size):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        source = read()
        assert source is not None
        with source, part.open("wb") as handle:
            shutil.copyfileobj(source, handle, 1 << 20)
        part.replace(target)
    return count
