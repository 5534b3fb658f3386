"""Pausing Python's cyclic garbage collector while millions of small records are created."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """Disable cyclic garbage collection in the block: with millions of dicts it would scan them again and again.

    Objects without cycles are still freed by reference counting, so peak memory does not change.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
