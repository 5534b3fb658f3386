"""What the user should know about the input, told once."""

from __future__ import annotations

import os
import sys

_told: set[str] = set()


def note(text: str, *, error: bool = False) -> None:
    """Print a note, once in a process however often a file is read, and by the first process of a run alone.

    Args:
        text: the note.
        error: on stderr, where what is printed may be read by a program.
    """
    if text not in _told and os.environ.get("RANK", "0") == "0":
        _told.add(text)
        print(f"note: {text}", flush=True, file=sys.stderr if error else sys.stdout)
