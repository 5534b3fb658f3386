"""Values of ``--cfg-options KEY=VALUE``: text to Python and back.

MMEngine's syntax: numbers, ``true``, ``false``, ``None``, lists ``[a,b]``, tuples ``(a,b)``, nested as you like, and
text for all else. MMEngine's own reader deletes every space and quote and reads a quoted ``'12'`` as a number. Here:

* text is kept as written, with its spaces, commas and brackets: ``data_root=/my photos, 2024/``;
* quotes, single or double, around a whole value or item mean text: ``'12'``, ``'[old]/a.json'``, ``['a, b', 'c']``. The
  quote itself is written twice inside (``'it''s'``); a backslash is an ordinary character;
* a number with leading zeros or underscores is text (``000123``, ``2024_01``);
* a bare ``640,480`` is a list where every item is a number, a bool, None or quoted; ``cat,dog`` is text (a list needs
  its brackets).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from smartclip_det.core.errors import UserError

_INTEGER = re.compile(r"[+-]?(0|[1-9]\d*)", re.ASCII)
_FLOAT = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)", re.ASCII | re.IGNORECASE)


def parse_options(pairs: Iterable[str]) -> dict[str, Any]:
    """``KEY=VALUE`` strings as a dictionary; the later of two equal keys counts.

    Raises:
        UserError: for a string without ``=`` or without a key, or a value of :func:`parse_value` that cannot be read.
    """
    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(
                f"--cfg-options takes KEY=VALUE; given {pair!r}. A value with spaces needs quotes in the shell: "
                'KEY="[a red mug, dog]".'
            )
        try:
            out[key] = parse_value(value)
        except UserError as error:
            raise UserError(f"--cfg-options {key}: {error}") from error
    return out


def parse_value(text: str) -> Any:
    """The value that a text stands for; see the head of this file.

    Raises:
        UserError: for a quote or bracket that is not closed, or text after a closing quote.
    """
    bare = text.strip()
    literal = _literal(bare)
    if literal is not _TEXT:
        return literal
    items = _split(bare)
    if len(items) > 1:
        found = [_literal(i.strip()) for i in items if i.strip()]
        if len(found) >= len(items) - 1 and found and not any(f is _TEXT or isinstance(f, list | tuple) for f in found):
            return found
    return text


#: What is no number, bool, None, list, tuple or quoted text.
_TEXT = object()


def _literal(text: str) -> Any:
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text == "None":
        return None
    if text[:1] in ("'", '"'):
        end = _quote_end(text, 0)
        if end == len(text):
            return text[1:-1].replace(text[0] * 2, text[0])
        if "," not in text[end:]:
            raise UserError(f"{text!r} goes on after its closing quote. Write a quote inside quotes twice.")
        return _TEXT
    if text[:1] in ("[", "("):
        end = _bracket_end(text)
        if end < len(text):
            if not text[end:].strip("])").strip():
                raise UserError(f"{text!r} closes more brackets than it opens.")
            return _TEXT
        items = [i.strip() for i in _split(text[1:-1])]
        if items and not items[-1]:
            items.pop()
        values = [i if (v := _literal(i)) is _TEXT else v for i in items]
        return tuple(values) if text[0] == "(" else values
    return _TEXT


def _quote_end(text: str, start: int) -> int:
    """Behind the quoted text that starts at ``start``."""
    quote, n = text[start], start + 1
    while n < len(text):
        if text[n] == quote:
            if text[n + 1 : n + 2] != quote:
                return n + 1
            n += 1
        n += 1
    raise UserError(f"the quote {quote} of {text[start:]!r} is not closed.")


def _bracket_end(text: str) -> int:
    """Behind the bracket that closes the first one."""
    depth, fresh, n = 0, False, 0
    while n < len(text):
        if fresh and text[n] in "'\"":
            n = _quote_end(text, n)
            fresh = False
            continue
        if text[n] in "[(":
            depth += 1
        elif text[n] in "])":
            depth -= 1
            if not depth:
                return n + 1
        # Quotes open where an item begins; elsewhere they are apostrophes.
        fresh = text[n] in "[(," or (fresh and text[n].isspace())
        n += 1
    raise UserError(f"the bracket {text[0]} of {text!r} is not closed. Put text that starts with one in quotes.")


def _split(text: str) -> list[str]:
    """The parts between commas that are in no quotes and no brackets."""
    parts, depth, start, fresh, n = [], 0, 0, True, 0
    while n < len(text):
        if fresh and text[n] in "'\"":
            n = _quote_end(text, n)
            fresh = False
            continue
        if text[n] == "," and not depth:
            parts.append(text[start:n])
            start = n + 1
        depth += (text[n] in "[(") - (text[n] in "])")
        fresh = text[n] in "[(," or (fresh and text[n].isspace())
        n += 1
    return [*parts, text[start:]] if text.strip() else []


def format_value(value: Any) -> str:
    """Text that :func:`parse_value` reads as this value again.

    Args:
        value: None, a bool, a number, text, a path (written as text), or a list or tuple of such.

    Raises:
        TypeError: for anything else.
    """
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str | os.PathLike):
        return _format_text(os.fspath(value))
    if isinstance(value, list | tuple):
        inner = ",".join(_quoted(os.fspath(v)) if isinstance(v, str | os.PathLike) else format_value(v) for v in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    raise TypeError(f"{type(value).__name__} cannot be written as an option: {value!r}.")


def _format_text(text: str) -> str:
    try:
        return text if parse_value(text) == text and not text.startswith(("'", '"')) else _quoted(text)
    except UserError:
        return _quoted(text)


def _quoted(text: str) -> str:
    quote = '"' if "'" in text and '"' not in text else "'"
    return quote + text.replace(quote, quote * 2) + quote


def format_options(options: Mapping[str, Any]) -> list[str]:
    """``--cfg-options`` and its values, for a command."""
    return ["--cfg-options", *(f"{k}={format_value(v)}" for k, v in options.items())] if options else []
