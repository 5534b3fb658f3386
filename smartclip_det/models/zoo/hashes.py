"""Hashes of downloaded files: compared with what was published, otherwise with what was first seen here."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.models.zoo.names import Source
from smartclip_det.utils.files import default_cache_dir, write_whole


def check_hash(path: Path, source: Source, *, fresh: bool) -> str:
    """The sha256 of a file, checked; a file that did not change since is not read again.

    Published are the registry's hash and, for large files of the hub, the name of the file in its cache.

    Args:
        path: the file.
        source: where it is from.
        fresh: whether it was downloaded just now: a wrong one is then removed.

    Raises:
        UserError: for a file that is not what was published, or not what it was when it came.
    """
    records = _read()
    key = _key(path, source)
    known = records.get(key, {})
    stat = path.stat()
    same = known.get("size") == stat.st_size and known.get("mtime_ns") == stat.st_mtime_ns
    with path.open("rb") as handle:
        found = str(known["sha256"]) if same else hashlib.file_digest(handle, "sha256").hexdigest()
    published = source.sha256 or _of_hub(path)
    if published and not found.startswith(published):
        raise _wrong(path, source, found, f"published is {published}", fresh)
    if not published and known and known["sha256"] != found:
        raise _wrong(path, source, found, f"on {known['first_seen']} it was {known['sha256']}", fresh)
    if not same:
        first = known.get("first_seen") or time.strftime("%Y-%m-%d")
        records[key] = {
            "sha256": found,
            "size": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
            "first_seen": first,
            "checked_against": "published" if published else "first seen",
        }
        write_whole(_file(), json.dumps(records, indent=1) + "\n")
    return found


def _wrong(path: Path, source: Source, found: str, said: str, fresh: bool) -> UserError:
    if fresh:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    then = "It was removed; try again" if fresh else f"Remove {path} and try again"
    return UserError(
        f"{source} has the sha256 {found}; {said}. {then}; if it stays so, the file was replaced or "
        "damaged on its way: do not use it."
    )


def _of_hub(path: Path) -> str | None:
    """The sha256 that the hub told: its cache names large files by it."""
    name = path.resolve().name
    return name if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", name) else None


def _key(path: Path, source: Source) -> str:
    if source.address:
        return source.address
    parts = path.parts
    # The hub's cache has snapshots/COMMIT/FILE.
    below = parts[parts.index("snapshots") + 1 :] if "snapshots" in parts else (path.name,)
    return "/".join((source.hub, *below))


def _file() -> Path:
    return default_cache_dir() / "weights.json"


def _read() -> dict[str, Any]:
    try:
        told = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
