"""JSON as it really comes: with a byte order mark, in UTF-16, packed by gzip; what is broken is named.

Non-finite numbers are refused with their place: Python's reader takes ``NaN``, which is no JSON, and every comparison
with it is false, so a NaN box is lost without an error.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from smartclip_det.core.errors import UserError

_GZIP = b"\x1f\x8b"
#: Characters from the end within which an error of the parser means a file that was cut short.
_TAIL = 200


def read_json(path: str | Path, what: str) -> Any:
    """Parse a json file.

    Args:
        path: the file; plain or packed by gzip, UTF-8, UTF-16 or UTF-32, with or without byte order mark.
        what: what it should be, for the message.

    Raises:
        UserError: for a missing or broken file, one nested without end, and non-finite numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No {what} at {path}. Check the path.")
    return parse_json(read_text(path), str(path))


def read_text(path: str | Path) -> str:
    """The text of a file that may be packed or in UTF-16; see :func:`read_json`."""
    path = Path(path)
    content = path.read_bytes()
    if content[:2] == _GZIP:
        with _unpacking(path):
            content = gzip.decompress(content)
    # The first bytes of a text say in which of Unicode's encodings it is: json's own rule.
    encoding = json.detect_encoding(content[:4])
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in Unicode ({error}). Save it as UTF-8.") from error


def parse_json(text: str, where: str) -> Any:
    """Parse JSON text; ``where`` it comes from stands in the messages."""
    odd: list[str] = []

    def keep(word: str) -> float:
        odd.append(word)
        return float(word)

    try:
        data = json.loads(text, parse_constant=keep)
    except json.JSONDecodeError as error:
        if not text.strip():
            raise UserError(f"{where} is empty.") from error
        hint = "; it may be cut short" if error.pos >= len(text) - _TAIL else ""
        raise UserError(f"{where} is not valid JSON ({error}){hint}.") from error
    except RecursionError as error:
        raise UserError(f"{where} is JSON that is nested too deep to be read: this is no file of data.") from error
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON ({error}).") from error
    if odd:
        raise UserError(
            f"{where}: {_place_of_non_finite(data)} is {odd[0]}, which is no number. Mend or remove that entry."
        )
    return data


def _place_of_non_finite(data: Any) -> str:
    """Where the first NaN or infinity of parsed JSON is: ``annotations[3].area``."""
    waiting: list[tuple[str, Any]] = [("", data)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, float) and not abs(value) < float("inf"):
            return place or "the content"
        if isinstance(value, dict):
            waiting += [(f"{place}.{k}".lstrip("."), v) for k, v in reversed(value.items())]
        elif isinstance(value, list):
            waiting += [(f"{place}[{n}]", value[n]) for n in range(len(value) - 1, -1, -1)]
    return "a value"


@contextmanager
def open_text(path: str | Path) -> Iterator[IO[str]]:
    """A text file for reading piece by piece, with the encodings and packing of :func:`read_json`."""
    path = Path(path)
    with path.open("rb") as raw, _unpacking(path):
        packed = raw.read(2) == _GZIP
        raw.seek(0)
        # typeshed has no common type for what both give.
        content = cast("io.BufferedReader", gzip.GzipFile(fileobj=raw) if packed else raw)
        buffered = io.BufferedReader(cast("io.RawIOBase", content), 1 << 20)
        yield io.TextIOWrapper(buffered, encoding=json.detect_encoding(buffered.peek(4)[:4]))


class Utf8Reader:
    """UTF-8 bytes of a file of any form that :func:`read_json` knows, for parsers that take only them."""

    def __init__(self, handle: IO[str]) -> None:
        """Build; ``handle`` is of :func:`open_text`."""
        self._handle = handle

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` characters, encoded."""
        return self._handle.read(size).encode()


@contextmanager
def _unpacking(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is packed by gzip and cannot be unpacked ({error}); it may be cut short.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in Unicode ({error}). Save it as UTF-8.") from error
