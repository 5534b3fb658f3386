"""Hashes of downloaded files, compared with the published ones, or else with the first download on this machine."""

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
    """Verify a file and return its sha256; unchanged files are not hashed again.

    Published hashes are that of the registry and, for large hub files, the blob name in the hub's cache.

    Args:
        path: the file.
        source: its origin.
        fresh: it was just downloaded; then a wrong file is removed.

    Raises:
        UserError: if the hash differs from the published one, or from that of the first download.
    """
    records = _read()
    key = _key(path, source)
    known = records.get(key, {})
    stat = path.stat()
    same = known.get("size") == stat.st_size and known.get("mtime_ns") == stat.st_mtime_ns
    with path.open("rb") as handle:
        actual = str(known["sha256"]) if same else hashlib.file_digest(handle, "sha256").hexdigest()
    published = source.sha256 or _of_hub(path)
    if published and not actual.startswith(published):
        raise _wrong(path, source, actual, f"the published one is {published}", fresh)
    if not published and known and known["sha256"] != actual:
        raise _wrong(path, source, actual, f"on {known['first_seen']} it was {known['sha256']}", fresh)
    if not same:
        first = known.get("first_seen") or time.strftime("%Y-%m-%d")
        records[key] = {
            "sha256": actual,
            "size": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
            "first_seen": first,
            "checked_against": "published" if published else "first seen",
        }
        write_whole(_file(), json.dumps(records, indent=1) + "\n")
    return actual


def _wrong(path: Path, source: Source, actual: str, expected: str, fresh: bool) -> UserError:
    if fresh:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    then = "It was removed; try again" if fresh else f"Remove {path} and try again"
    return UserError(
        f"{source} has the sha256 {actual}; {expected}. {then}. If it happens again, the file was replaced or "
        "corrupted in transit: do not use it."
    )


def _of_hub(path: Path) -> str | None:
    """The sha256 from the hub: its cache names the blobs of large files by it."""
    name = path.resolve().name
    return name if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", name) else None


def _key(path: Path, source: Source) -> str:
    if source.address:
        return source.address
    parts = path.parts
    # Paths in the hub's cache are .../snapshots/COMMIT/FILE.
    below = parts[parts.index("snapshots") + 1 :] if "snapshots" in parts else (path.name,)
    return "/".join((source.hub, *below))


def _file() -> Path:
    return default_cache_dir() / "weights.json"


def _read() -> dict[str, Any]:
    try:
        records = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return records if isinstance(records, dict) else {}
