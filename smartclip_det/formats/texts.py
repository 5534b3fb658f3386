"""Decoding of text files: UTF-8 with or without byte order mark, UTF-16 and UTF-32 with it."""

from __future__ import annotations

import codecs
from pathlib import Path

from smartclip_det.core.errors import UserError

#: UTF-32's byte order mark starts with UTF-16's, so it comes first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
HOW_TO_CONVERT = "iconv -f LATIN1 -t UTF-8 (with the file's actual encoding) converts it"


def decode_text(content: bytes) -> str:
    """Decode bytes, with newlines normalised; invalid UTF-8 becomes lone surrogates (see :func:`is_text`).

    Other encodings cannot be detected reliably, and a wrong guess would be a wrong caption that nobody notices.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            try:
                return _lines(content[len(mark) :].decode(encoding))
            except UnicodeDecodeError:
                break
    return _lines(content.decode("utf-8", errors="surrogateescape"))


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def is_text(text: str) -> bool:
    """Whether a string is valid text: no undecodable bytes, no lone surrogates, no NUL."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def read_text(path: str | Path, what: str) -> str:
    """Read a text file.

    Raises:
        UserError: for a missing file, or an encoding that is neither UTF-8 nor given by a byte order mark.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No {what} at {path}. Check the path.")
    text = decode_text(path.read_bytes())
    if not is_text(text):
        line = next(n for n, content in enumerate(text.split("\n"), 1) if not is_text(content))
        raise UserError(f"{path}, line {line}, is not UTF-8 text; {HOW_TO_CONVERT}.")
    return text
