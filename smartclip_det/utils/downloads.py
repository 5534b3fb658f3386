"""Files from an address, through huggingface_hub's own transfer: it resumes by ranges, tries again, knows proxies.

Other well-kept libraries (pooch, torchvision's utilities, fsspec) begin again where a connection breaks, which at 19 GB
is too dear. A download grows in ``NAME.part``; the next run goes on from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from smartclip_det.core.errors import UserError
from smartclip_det.utils.disk import is_full_disk, refuse_full_disk

_AGAIN = "Run the same command again to go on from there."
_ROOM = "Make room, or choose another folder."


def download(
    addresses: Sequence[str], path: Path, *, size: int | None = None, hashes: Mapping[str, str] | None = None
) -> Path:
    """Fetch a file, checked; the first address that gives it is taken.

    Args:
        addresses: of the same file.
        path: where it goes, when it is whole.
        size: bytes, where they are known.
        hashes: by name of the algorithm; each must fit.

    Raises:
        UserError: where no address gives the file, the disk is full, or the file is not the published one.
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
    kept = f" {have / 1e6:,.1f} MB are kept in {part}." if have else ""
    raise UserError(f"{path.name} did not come. {' '.join(reasons)}{kept} {_AGAIN}")


def size_of(addresses: Sequence[str], seconds: float = 5) -> int | None:
    """Bytes of a file as its server tells; None where none does."""
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
    """Append what is missing; why not, in words, where it does not come.

    Raises:
        UserError: where another address would not help.
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
                f"The disk is full: {part} keeps {part.stat().st_size / 1e6:,.1f} MB. {_ROOM} {_AGAIN}"
            ) from error
        return _reason(error, part)
    return ""


def _reason(error: Exception, part: Path) -> str:
    first = (str(error).strip().splitlines() or [""])[0][:200]
    if "Consistency check failed" in first:
        # What came is all there is at that address: nothing to go on from.
        got = part.stat().st_size
        part.unlink()
        return f"the file there has {got:,} bytes, and is not the published one."
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 416:
        part.unlink(missing_ok=True)
        return "what was kept does not fit the file there, and was removed."
    return f"answers {status}." if status else f"{type(error).__name__}: {first}."


def check_file(path: Path, name: str, size: int | None, hashes: Mapping[str, str]) -> None:
    """Size and hashes of a file, read once; one that is wrong is removed.

    Raises:
        UserError: telling what was expected and what came.
    """
    found = path.stat().st_size
    wrong = [f"{found:,} bytes, published are {size:,}"] if size not in (None, found) else []
    digests = {algorithm: hashlib.new(algorithm) for algorithm in hashes}
    if digests and not wrong:
        with path.open("rb") as handle:
            while block := handle.read(1 << 22):
                for digest in digests.values():
                    digest.update(block)
        wrong = [
            f"{a} {d.hexdigest()}, published is {hashes[a]}" for a, d in digests.items() if d.hexdigest() != hashes[a]
        ]
    if wrong:
        path.unlink()
        raise UserError(
            f"{name} is not the published file: {'; '.join(wrong)}. It was removed; run the same command again."
        )
