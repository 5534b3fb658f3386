"""What the user should know about the input, told once."""

from __future__ import annotations

import os

_told: set[str] = set()


def note(text: str) -> None:
    """Print a note, once in a process however often a file is read, and by the first process of a run alone."""
    if text not in _told and os.environ.get("RANK", "0") == "0":
        _told.add(text)
        print(f"note: {text}", flush=True)
