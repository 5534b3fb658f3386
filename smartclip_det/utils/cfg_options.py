"""Values of ``--cfg-options KEY=VALUE``: parsing and formatting.

The syntax is MMEngine's: numbers, ``true``, ``false``, ``None``, lists ``[a,b]`` and tuples ``(a,b)``, nested at will;
everything else is a string. MMEngine's own parser drops all spaces and quotes and reads a quoted ``'12'`` as a number.
Here:

* strings are taken literally, with spaces, commas and brackets: ``data_root=/my photos, 2024/``;
* single or double quotes around a whole value or item make it a string: ``'12'``, ``'[old]/a.json'``,
  ``['a, b', 'c']``. Inside, the quote is doubled (``'it''s'``); a backslash is an ordinary character;
* a number with leading zeros or underscores is a string (``000123``, ``2024_01``);
* a bare ``640,480`` is a list if every item is a number, a bool, None or quoted; ``cat,dog`` is a string (a list of
  words needs brackets).
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
    """Parse ``KEY=VALUE`` strings into a dictionary; of two equal keys the last wins.

    Raises:
        UserError: for a string without ``=`` or key, or a value that :func:`parse_value` rejects.
    """
    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(
                f"--cfg-options takes KEY=VALUE; given {pair!r}. Quote values with spaces in the shell: "
                'KEY="[a red mug, dog]".'
            )
        try:
            out[key] = parse_value(value)
        except UserError as error:
            raise UserError(f"--cfg-options {key}: {error}") from error
    return out


def parse_value(text: str) -> Any:
    """Parse one value; see the module docstring.

    Raises:
        UserError: for an unclosed quote or bracket, or text after a closing quote.
    """
    bare = text.strip()
    literal = _literal(bare)
    if literal is not _TEXT:
        return literal
    items = _split(bare)
    if len(items) > 1:
        values = [_literal(i.strip()) for i in items if i.strip()]
        if (
            len(values) >= len(items) - 1
            and values
            and not any(v is _TEXT or isinstance(v, list | tuple) for v in values)
        ):
            return values
    return text


#: Sentinel for a plain string: not a number, bool, None, list, tuple or quoted string.
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
            raise UserError(f"{text!r} continues after its closing quote. Double a quote inside quotes.")
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
    """End of the quoted string that starts at ``start``."""
    quote, n = text[start], start + 1
    while n < len(text):
        if text[n] == quote:
            if text[n + 1 : n + 2] != quote:
                return n + 1
            n += 1
        n += 1
    raise UserError(f"the quote {quote} of {text[start:]!r} is not closed.")


def _bracket_end(text: str) -> int:
    """End of the bracket pair that opens the text."""
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
        # A quote at the start of an item opens a string; elsewhere it is an apostrophe.
        fresh = text[n] in "[(," or (fresh and text[n].isspace())
        n += 1
    raise UserError(f"the bracket {text[0]} of {text!r} is not closed. Quote strings that start with a bracket.")


def _split(text: str) -> list[str]:
    """Split at commas outside quotes and brackets."""
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
    """Format a value so that :func:`parse_value` reads it back unchanged.

    Args:
        value: None, a bool, a number, a string, a path (written as a string), or a list or tuple of these.

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
    """``--cfg-options`` and its values as command-line arguments; empty without options."""
    return ["--cfg-options", *(f"{k}={format_value(v)}" for k, v in options.items())] if options else []
