"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: str | Path, text: str) -> Path:
    """Write UTF-8 text to a file, with its folders; a run that dies leaves the file of before, or none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may write the same file; each has its own beginnings.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
    return path
