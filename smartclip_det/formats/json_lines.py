"""JSON lines: one object a line, told by number where one is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError


def read_json_lines(path: str | Path, what: str) -> Iterator[tuple[str, Any]]:
    """``("FILE line N", content)`` of every line that is not blank.

    Args:
        path: UTF-8 text, with or without a byte order mark.
        what: what the file should be, for messages.

    Raises:
        UserError: for a missing file, other text than UTF-8, and lines that are no JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No {what} at {path}. Check the path.")
    number = 0
    # Lines of a file object end at line feeds; those of splitlines also at characters that a sentence may hold.
    with path.open(encoding="utf-8-sig") as handle:
        try:
            for number, line in enumerate(handle, 1):
                if line.strip():
                    yield f"{path} line {number}", json.loads(line)
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text ({error}).") from error
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{path} line {number} is not valid JSON ({error}); the file may be cut short.") from error


def first_json_line(path: Path) -> Any:
    """The content of the first line that is not blank; None where it is no JSON."""
    try:
        return next((row for _, row in read_json_lines(path, "file")), None)
    except UserError:
        return None
