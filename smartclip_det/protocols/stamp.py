"""Protocol stamps: how a number was computed, stored with the number."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smartclip_det.utils.env import versions
from smartclip_det.utils.files import write_whole


def file_hash(path: str | Path) -> str:
    """First 16 hex digits of the SHA-256 of a file, or of the sorted names and contents of a folder."""
    path = Path(path)
    digest = hashlib.sha256()
    for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if part.is_file():
            if path.is_dir():
                digest.update(part.name.encode())
            with part.open("rb") as handle:
                for block in iter(lambda: handle.read(1 << 20), b""):
                    digest.update(block)
    return digest.hexdigest()[:16]


def code_version() -> str:
    """Package version, with the commit when run from a clone (and ``+`` for uncommitted changes)."""
    from smartclip_det.version import __version__

    root = Path(__file__).resolve().parents[2]

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        dirty = git("status", "--porcelain", "-uno")
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+{commit}{'+' if dirty else ''}"


def protocol_stamp(protocol: str, **facts: Any) -> dict[str, Any]:
    """The ``protocol`` entry of a result file: name, given facts, command, code version and library versions."""
    command = " ".join(shlex.quote(a) for a in [Path(sys.argv[0]).name, *sys.argv[1:]])
    return {"name": protocol, **facts, "command": command, "code": code_version(), "versions": versions()}


def write_results(path: str | Path, protocol: Mapping[str, Any], metrics: Mapping[str, Any], **more: Any) -> Path:
    """Write ``{"protocol", "metrics", ...}`` as JSON, atomically; numbers are not rounded."""
    content = {"protocol": dict(protocol), "metrics": dict(metrics), **more}
    return write_whole(path, json.dumps(content, indent=2, default=str) + "\n")
