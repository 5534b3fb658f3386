"""Checkpoints that appear whole or not at all, and the last good one after a run was killed."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from smartclip_det.core.errors import UserError

logger = logging.getLogger(__name__)
_STEP = re.compile(r"^(?:epoch|iter)_(\d+)\.pth$")


class AtomicLocalBackend(LocalBackend):
    """MMEngine's local files, written beside their place and moved there when they are on disk."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes."""
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        with part.open("wb") as handle:
            handle.write(obj)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(part, path)


register_backend("atomic", AtomicLocalBackend, force=True)


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
