"""User-facing errors: what was given, what is allowed, and the closest allowed names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Invalid input that the user can fix. Tools print it without a traceback and exit with code 2."""


def nearest(name: str, allowed: Iterable[str], count: int = 3) -> list[str]:
    """The ``count`` allowed names closest to ``name``, best first; case-insensitive."""
    by_lower = {str(a).lower(): str(a) for a in allowed}
    hits = difflib.get_close_matches(str(name).lower(), list(by_lower), n=count, cutoff=0.4)
    return [by_lower[h] for h in hits]


def check_choice(what: str, given: object, allowed: Iterable[str]) -> str:
    """Return ``given`` if it is one of ``allowed``.

    Raises:
        UserError: otherwise; the message lists the given value, all allowed values and the closest ones.
    """
    allowed = list(allowed)
    if given in allowed:
        return str(given)
    hint = nearest(str(given), allowed)
    raise UserError(
        f"{what}={given!r} is not known. Allowed: {', '.join(allowed)}."
        + (f" Nearest: {', '.join(hint)}." if hint else "")
    )


def unknown_names(what: str, unknown: Iterable[str], allowed: Iterable[str], advice: str) -> UserError:
    """Error for names that match nothing, each with its closest allowed names."""
    allowed = list(allowed)
    unknown = list(unknown)
    shown = "; ".join(f"{u!r} (nearest: {', '.join(nearest(u, allowed)) or 'none'})" for u in unknown[:10])
    more = f"; and {len(unknown) - 10} more" if len(unknown) > 10 else ""
    return UserError(f"{len(unknown)} {what} not found: {shown}{more}. {advice}")
