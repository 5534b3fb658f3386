"""The ways in which a text's mask is used, under one set of words everywhere. No torch: the command line lists them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from smartclip_det.core.errors import check_choice

#: ``hard``: the binary mask, the published score; ``soft``: its probabilities; ``off``: CLIP's plain cosine; and the
#: controls, ``random``: as many dimensions drawn by the text's hash, ``shuffled``: another text's mask.
MASK_MODES = ("hard", "soft", "off", "random", "shuffled")
#: Of image-text retrieval and classification, whose saved masks are hard.
RETRIEVAL_MODES = ("hard", "off", "random", "shuffled")
#: Words of version 0 and the modes that they meant; read until the next version.
OLD_WORDS = {"masked": "hard", "plain": "off"}
_told: set[str] = set()


def mask_mode(given: str, allowed: Sequence[str] = MASK_MODES, what: str = "mask_mode") -> str:
    """A mask mode; a word of the last version is read, and said once.

    Raises:
        UserError: for other words.
    """
    new = OLD_WORDS.get(given) if isinstance(given, str) else None
    if new in allowed and given not in allowed:
        if given not in _told:
            print(f"note: {what} {given!r} is called {new!r} now.", file=sys.stderr)
            _told.add(given)
        return str(new)
    return check_choice(what, given, allowed)


def current_names(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of a result file with their names of today: ``t2i_r1_long_plain`` is ``t2i_r1_long_off``."""
    return {_current(k): v for k, v in metrics.items()}


def _current(name: str) -> str:
    head, _, last = name.rpartition("_")
    return f"{head}_{OLD_WORDS[last]}" if head and last in OLD_WORDS else name
