"""Atomic checkpoint writes, and finding the last complete checkpoint of an interrupted run."""

from __future__ import annotations

import io
import logging
import os
import re
import threading
from pathlib import Path
from typing import Any

import torch
from mmengine.fileio import LocalBackend, register_backend

from smartclip_det.core.errors import UserError

logger = logging.getLogger(__name__)
_STEP = re.compile(r"^(?:epoch|iter)_(\d+)\.pth$")


class AtomicLocalBackend(LocalBackend):
    """MMEngine's local backend with atomic writes from a background thread.

    Only one file is written at a time: a put waits for the previous one, so a killed run loses at most one checkpoint
    interval. :func:`finish_writes` waits for the last one.
    """

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        """Write bytes."""
        _WRITER.start(obj, Path(filepath))


class _Writer:
    """Background writer; its errors are raised by the next write or by :func:`finish_writes`."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None

    def start(self, content: bytes | memoryview, path: Path) -> None:
        self.finish()
        # Not a daemon thread: Python waits for it at exit.
        self._thread = threading.Thread(target=self._write, args=(content, path), name=f"writes {path.name}")
        self._thread.start()

    def finish(self) -> None:
        if self._thread is not None:
            self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error is not None:
            raise UserError(f"A checkpoint could not be written: {error}.") from error

    def _write(self, content: bytes | memoryview, path: Path) -> None:
        try:
            put_whole(content, path)
        except OSError as error:
            self._error = error


_WRITER = _Writer()


def finish_writes() -> None:
    """Wait until every file is on disk.

    Raises:
        UserError: if one could not be written.
    """
    _WRITER.finish()


def put_whole(content: bytes | memoryview, path: Path) -> None:
    """Write bytes to a file atomically, creating folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(part, path)


def save_whole(content: Any, path: Path) -> None:
    """``torch.save`` with :func:`put_whole`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    put_whole(buffer.getbuffer(), path)


def last_good_checkpoint(work_dir: str | Path) -> Path:
    """The checkpoint to resume from.

    This is the file in ``last_checkpoint`` if it exists; otherwise (the run was killed while writing it) the newest
    ``iter_N.pth`` or ``epoch_N.pth``.

    Raises:
        UserError: if there is none.
    """
    folder = Path(work_dir)
    pointer = folder / "last_checkpoint"
    named = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
    if named:
        # The work folder may have been moved.
        for path in (Path(named), folder / Path(named).name):
            # DeepSpeed writes folders.
            if path.exists():
                return path
    checkpoints = {int(m[1]): p for p in folder.glob("*.pth") if (m := _STEP.match(p.name))}
    if not checkpoints:
        raise UserError(f"--resume: no checkpoint in {folder}. Start without --resume, or name a checkpoint.")
    path = checkpoints[max(checkpoints)]
    logger.warning("%s names no existing checkpoint; resuming from %s.", pointer, path)
    return path


register_backend("atomic", AtomicLocalBackend, force=True)
