"""Python's collector of reference cycles, out of the way of millions of small records."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """No collection of cycles inside: result files become millions of dicts, which it would look through all the time.

    Records without cycles are freed as ever, so memory stays what it was.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
