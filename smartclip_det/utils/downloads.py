"""Downloads through huggingface_hub's transfer, which resumes by byte range, retries, and honours proxies.

Other maintained libraries (pooch, torchvision's utilities, fsspec) restart after a broken connection, which is too
expensive at 19 GB. A download is written to ``NAME.part``; the next run resumes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from smartclip_det.core.errors import UserError
from smartclip_det.utils.disk import is_full_disk, refuse_full_disk

_AGAIN = "Run the same command again to resume."
_ROOM = "Free some space, or choose another folder."


def download(
    addresses: Sequence[str], path: Path, *, size: int | None = None, hashes: Mapping[str, str] | None = None
) -> Path:
    """Download and verify a file from the first URL that works.

    Args:
        addresses: URLs of the same file.
        path: destination, written only when the download is complete.
        size: expected size in bytes, if known.
        hashes: expected digests by algorithm name; all must match.

    Raises:
        UserError: if no URL works, the disk is full, or the file is not the published one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    have = part.stat().st_size if part.is_file() else 0
    refuse_full_disk(None if size is None else size - have, path.parent, path.name, _ROOM)
    reasons = []
    for address in addresses:
        reason = _fetch(address, part, size)
        if not reason:
            check_file(part, path.name, size, hashes or {})
            part.replace(path)
            return path
        reasons.append(f"{address}: {reason}")
    have = part.stat().st_size if part.is_file() else 0
    partial = f" {have / 1e6:,.1f} MB are saved in {part}." if have else ""
    raise UserError(f"Could not download {path.name}. {' '.join(reasons)}{partial} {_AGAIN}")


def size_of(addresses: Sequence[str], seconds: float = 5) -> int | None:
    """File size in bytes as reported by the server; None if no server reports it."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    for address in () if constants.is_offline_mode() else addresses:
        try:
            answer = get_session().head(address, follow_redirects=True, timeout=seconds)
        except Exception:
            continue
        if answer.status_code == 200 and answer.headers.get("Content-Length", "").isdigit():
            return int(answer.headers["Content-Length"])
    return None


def _fetch(address: str, part: Path, size: int | None) -> str:
    """Append the missing bytes. Returns an empty string, or why the download failed.

    Raises:
        UserError: if another URL would not help.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import http_get

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set."
    have = part.stat().st_size if part.is_file() else 0
    try:
        with part.open("ab") as handle:
            http_get(address, handle, resume_size=have, expected_size=size, displayed_filename=part.stem)
    except Exception as error:
        if is_full_disk(error):
            raise UserError(
                f"The disk is full; {part.stat().st_size / 1e6:,.1f} MB are saved in {part}. {_ROOM} {_AGAIN}"
            ) from error
        return _reason(error, part)
    return ""


def _reason(error: Exception, part: Path) -> str:
    first = (str(error).strip().splitlines() or [""])[0][:200]
    if "Consistency check failed" in first:
        # The server has no more bytes than these, so there is nothing to resume.
        got = part.stat().st_size
        part.unlink()
        return f"the file has {got:,} bytes and is not the published one."
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 416:
        part.unlink(missing_ok=True)
        return "the partial file did not match the file on the server and was removed."
    return f"the server answered {status}." if status else f"{type(error).__name__}: {first}."


def check_file(path: Path, name: str, size: int | None, hashes: Mapping[str, str]) -> None:
    """Verify size and hashes of a file, reading it once; a wrong file is removed.

    Raises:
        UserError: with the expected and the actual values.
    """
    actual = path.stat().st_size
    wrong = [f"it has {actual:,} bytes instead of {size:,}"] if size not in (None, actual) else []
    digests = {algorithm: hashlib.new(algorithm) for algorithm in hashes}
    if digests and not wrong:
        with path.open("rb") as handle:
            while block := handle.read(1 << 22):
                for digest in digests.values():
                    digest.update(block)
        wrong = [
            f"its {a} is {d.hexdigest()} instead of {hashes[a]}"
            for a, d in digests.items()
            if d.hexdigest() != hashes[a]
        ]
    if wrong:
        path.unlink()
        raise UserError(
            f"{name} is not the published file: {'; '.join(wrong)}. It was removed; run the same command again."
        )
