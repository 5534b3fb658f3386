"""Atomic writes, the cache folder, and system files to skip in data sets."""

from __future__ import annotations

import os
from pathlib import Path, PurePath


def default_cache_dir() -> Path:
    """``$SMARTCLIP_DET_CACHE``, or ``smartclip_det`` in the user's cache folder."""
    root = os.environ.get("SMARTCLIP_DET_CACHE")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "smartclip_det"


def write_whole(path: str | Path, text: str) -> Path:
    """Write UTF-8 text atomically, creating folders: an interrupted run leaves the old file, or none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps concurrent writers of the same file apart.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
    return path


#: Folders that operating systems, file servers and editors create; names with a leading dot are always skipped.
_DEBRIS = {"__macosx", "@eadir", "__pycache__", "lost+found", "#recycle", "$recycle.bin", "system volume information"}


def is_debris(relative: str | PurePath) -> bool:
    """Whether a path inside a data set is hidden, or in a folder created by a system or editor."""
    parts = PurePath(relative).parts
    return any(p.lower() in _DEBRIS or (p.startswith(".") and p not in (".", "..")) for p in parts)
