"""Mask modes, with one set of names for the whole package. Torch-free, because the command line lists them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from smartclip_det.core.errors import check_choice

#: ``hard``: the binary mask (the published score); ``soft``: mask probabilities; ``off``: CLIP's plain cosine.
#: Controls: ``random``: as many dimensions as the hard mask, drawn from the text's hash; ``shuffled``: the mask of
#: another text.
MASK_MODES = ("hard", "soft", "off", "random", "shuffled")
#: Modes of image-text retrieval and classification, whose saved masks are binary.
RETRIEVAL_MODES = ("hard", "off", "random", "shuffled")
#: Mode names of version 0 and their current names; accepted until the next version.
OLD_WORDS = {"masked": "hard", "plain": "off"}
_warned: set[str] = set()


def mask_mode(given: str, allowed: Sequence[str] = MASK_MODES, what: str = "mask_mode") -> str:
    """Validate a mask mode. A deprecated name is accepted with one warning.

    Raises:
        UserError: for an unknown name.
    """
    new = OLD_WORDS.get(given) if isinstance(given, str) else None
    if new in allowed and given not in allowed:
        if given not in _warned:
            print(f"note: {what} {given!r} is now called {new!r}.", file=sys.stderr)
            _warned.add(given)
        return str(new)
    return check_choice(what, given, allowed)


def current_names(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Rename deprecated metric names of a result file: ``t2i_r1_long_plain`` becomes ``t2i_r1_long_off``."""
    return {_current(k): v for k, v in metrics.items()}


def _current(name: str) -> str:
    head, _, last = name.rpartition("_")
    return f"{head}_{OLD_WORDS[last]}" if head and last in OLD_WORDS else name
