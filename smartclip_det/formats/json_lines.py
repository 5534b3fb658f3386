"""JSON lines: one object per line; errors name the line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError


def read_json_lines(path: str | Path, what: str) -> Iterator[tuple[str, Any]]:
    """Yield ``("FILE line N", content)`` of every non-blank line.

    Args:
        path: UTF-8 text, with or without a byte order mark.
        what: what the file should be, for messages.

    Raises:
        UserError: for a missing file, text that is not UTF-8, and invalid JSON.
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
                    yield f"{path} line {number}", json.loads(line)
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text ({error}).") from error
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{path} line {number} is not valid JSON ({error}); the file may be truncated.") from error


def first_json_line(path: Path) -> Any:
    """Return the content of the first non-blank line; None if it is not JSON."""
    try:
        return next((row for _, row in read_json_lines(path, "file")), None)
    except UserError:
        return None
