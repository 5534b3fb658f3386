"""JSON lines: one object per line; errors name the line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError


def read_json_lines(path: str | Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``("FILE line N", object)`` of every non-blank line.

    Args:
        path: UTF-8 text, with or without a byte order mark.
        what: what the file should be, for messages.

    Raises:
        UserError: for a missing file, text that is not UTF-8, invalid JSON, and lines that are not objects.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No {what} at {path}. Check the path.")
    number = 0
    # Iterate the file object: str.splitlines would also split at characters that may occur in a sentence.
    with path.open(encoding="utf-8-sig") as handle:
        try:
            for number, line in enumerate(handle, 1):
                if line.strip():
                    yield f"{path} line {number}", _object(json.loads(line), path, number)
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text ({error}).") from error
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{path} line {number} is not valid JSON ({error}); the file may be truncated.") from error


def _object(content: Any, path: Path, number: int) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(f"{path} line {number} holds a {type(content).__name__}. Write one object per line.")
    return content


def first_json_line(path: Path) -> dict[str, Any] | None:
    """Return the object on the first non-blank line; None if it is none."""
    try:
        return next((row for _, row in read_json_lines(path, "file")), None)
    except UserError:
        return None
