"""JSON files in practice: with byte order mark, in UTF-16, gzipped; errors name the file.

Non-finite numbers are an error that names their position: Python's parser accepts ``NaN``, which is not JSON, and every
comparison with it is false, so a NaN box would silently match nothing.
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
#: A parse error within this many characters of the end suggests a truncated file.
_TAIL = 200


def read_json(path: str | Path, what: str) -> Any:
    """Parse a JSON file.

    Args:
        path: path of the file; plain or gzipped, UTF-8, UTF-16 or UTF-32, with or without byte order mark.
        what: what the file should be, for messages.

    Raises:
        UserError: for a missing or invalid file, too deep nesting, and non-finite numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No {what} at {path}. Check the path.")
    return parse_json(read_text(path), str(path))


def read_text(path: str | Path) -> str:
    """Read the text of a file that may be gzipped or in UTF-16; see :func:`read_json`."""
    path = Path(path)
    content = path.read_bytes()
    if content[:2] == _GZIP:
        with _unpacking(path):
            content = gzip.decompress(content)
    # json detects the Unicode encoding from the first bytes.
    encoding = json.detect_encoding(content[:4])
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not Unicode text ({error}). Save it as UTF-8.") from error


def parse_json(text: str, where: str) -> Any:
    """Parse JSON text; ``where`` names its origin in messages."""
    odd: list[str] = []

    def keep(word: str) -> float:
        odd.append(word)
        return float(word)

    try:
        data = json.loads(text, parse_constant=keep)
    except json.JSONDecodeError as error:
        if not text.strip():
            raise UserError(f"{where} is empty.") from error
        hint = "; it may be truncated" if error.pos >= len(text) - _TAIL else ""
        raise UserError(f"{where} is not valid JSON ({error}){hint}.") from error
    except RecursionError as error:
        raise UserError(f"{where} is nested too deeply to be read.") from error
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON ({error}).") from error
    if odd:
        raise UserError(
            f"{where}: {_place_of_non_finite(data)} is {odd[0]}, which is not a finite number. Fix or remove "
            "that entry."
        )
    return data


def _place_of_non_finite(data: Any) -> str:
    """Locate the first NaN or infinity in parsed JSON, e.g. ``annotations[3].area``."""
    stack: list[tuple[str, Any]] = [("", data)]
    while stack:
        place, value = stack.pop()
        if isinstance(value, float) and not abs(value) < float("inf"):
            return place or "the content"
        if isinstance(value, dict):
            stack += [(f"{place}.{k}".lstrip("."), v) for k, v in reversed(value.items())]
        elif isinstance(value, list):
            stack += [(f"{place}[{n}]", value[n]) for n in range(len(value) - 1, -1, -1)]
    return "a value"


@contextmanager
def open_text(path: str | Path) -> Iterator[IO[str]]:
    """Open a text file for incremental reading, with the encodings and compression of :func:`read_json`."""
    path = Path(path)
    with path.open("rb") as raw, _unpacking(path):
        packed = raw.read(2) == _GZIP
        raw.seek(0)
        # typeshed has no common type for the two.
        content = cast("io.BufferedReader", gzip.GzipFile(fileobj=raw) if packed else raw)
        buffered = io.BufferedReader(cast("io.RawIOBase", content), 1 << 20)
        yield io.TextIOWrapper(buffered, encoding=json.detect_encoding(buffered.peek(4)[:4]))


class Utf8Reader:
    """File-like object that yields UTF-8 bytes, for parsers that only accept those."""

    def __init__(self, handle: IO[str]) -> None:
        """Wrap a handle of :func:`open_text`."""
        self._handle = handle

    def read(self, size: int = -1) -> bytes:
        """Read at most ``size`` characters, encoded."""
        return self._handle.read(size).encode()


@contextmanager
def _unpacking(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is gzipped and cannot be unpacked ({error}); it may be truncated.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not Unicode text ({error}). Save it as UTF-8.") from error
