"""Files that appear whole or not at all, where we keep some, and those that nobody meant to be there."""

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
    """Write UTF-8 text to a file, with its folders; a run that dies leaves the file of before, or none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may write the same file; each has its own beginnings.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
    return path


#: Folders that systems, file servers and editors leave behind; those beginning with a dot are known by it.
_DEBRIS = {"__macosx", "@eadir", "__pycache__", "lost+found", "#recycle", "$recycle.bin", "system volume information"}


def is_debris(relative: str | PurePath) -> bool:
    """Whether a path inside a data set is hidden, or of a folder that a system or editor made."""
    parts = PurePath(relative).parts
    return any(p.lower() in _DEBRIS or (p.startswith(".") and p not in (".", "..")) for p in parts)
