"""Checkpoints that appear whole or not at all, and the last good one after a run was killed."""

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
    """MMEngine's local files, written by a thread beside training, and moved to their place when they are on disk.

    One file is on its way at a time: a put waits for the one before, so that a run that is killed has lost an interval
    at most. :func:`finish_writes` waits for the last.
    """

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        """Write bytes."""
        _WRITER.start(obj, Path(filepath))


class _Writer:
    """The thread that writes; errors of it are raised where the next file, or the end, is asked for."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None

    def start(self, content: bytes | memoryview, path: Path) -> None:
        self.finish()
        # No daemon: Python waits for it at its end.
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
        UserError: when one could not be written.
    """
    _WRITER.finish()


def put_whole(content: bytes | memoryview, path: Path) -> None:
    """Write bytes to a file that appears whole or not at all, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(part, path)


def save_whole(content: Any, path: Path) -> None:
    """``torch.save`` of such a file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    put_whole(buffer.getbuffer(), path)


def last_good_checkpoint(work_dir: str | Path) -> Path:
    """The checkpoint to go on from.

    ``last_checkpoint`` where it names a file that is there; otherwise (the run died while it was written) the newest
    ``iter_N.pth`` or ``epoch_N.pth``.

    Raises:
        UserError: when there is none.
    """
    folder = Path(work_dir)
    pointer = folder / "last_checkpoint"
    named = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
    if named:
        # A work folder may have been moved since.
        for path in (Path(named), folder / Path(named).name):
            # DeepSpeed writes folders.
            if path.exists():
                return path
    found = {int(m[1]): p for p in folder.glob("*.pth") if (m := _STEP.match(p.name))}
    if not found:
        raise UserError(f"--resume: no checkpoint in {folder}. Leave --resume out to start, or name a checkpoint.")
    path = found[max(found)]
    logger.warning("%s names no checkpoint that is there; going on from %s.", pointer, path)
    return path


register_backend("atomic", AtomicLocalBackend, force=True)
