"""Notes to the user about the input, printed once."""

from __future__ import annotations

import os
import sys

_printed: set[str] = set()


def note(text: str, *, error: bool = False) -> None:
    """Print a note once per process, and only on rank 0.

    Args:
        text: the note.
        error: print to stderr, for commands whose stdout may be parsed by a program.
    """
    if text not in _printed and os.environ.get("RANK", "0") == "0":
        _printed.add(text)
        print(f"note: {text}", flush=True, file=sys.stderr if error else sys.stdout)
