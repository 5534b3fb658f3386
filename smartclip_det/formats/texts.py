"""Text of files in the encodings that people have: UTF-8 with or without its mark, UTF-16 and UTF-32 by theirs."""

from __future__ import annotations

import codecs
from pathlib import Path

from smartclip_det.core.errors import UserError

#: UTF-32's mark begins with UTF-16's, so it is looked for first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
HOW_TO_CONVERT = "iconv -f LATIN1 -t UTF-8 (or the encoding that it was written in) converts it"


def decode_text(content: bytes) -> str:
    """The text of a file's bytes, line ends as newlines; what is no UTF-8 stays as lone surrogates (:func:`is_text`).

    Other encodings cannot be told from the bytes alone, and a wrong guess is a wrong caption that nobody sees.
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
    """Whether a string is whole text: no bytes that did not decode, no halves of characters, no NUL."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def read_text(path: str | Path, what: str) -> str:
    """The text of a file.

    Raises:
        UserError: no file there, or an encoding that is neither UTF-8 nor told by a byte order mark.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No {what} at {path}. Check the path.")
    text = decode_text(path.read_bytes())
    if not is_text(text):
        line = next(n for n, found in enumerate(text.split("\n"), 1) if not is_text(found))
        raise UserError(f"{path}, line {line}, is no UTF-8 text; {HOW_TO_CONVERT}.")
    return text
