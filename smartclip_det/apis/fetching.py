"""Pictures behind an address: http and https alone, within a size and a time, and what went wrong in one line."""

from __future__ import annotations

import http.client
import queue
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import IO, Any

from smartclip_det.core.errors import UserError
from smartclip_det.version import __version__

SCHEMES = ("http", "https")
#: Bytes and seconds of one picture at most. The seconds are of the whole answer, the name's look-up included.
LIMIT = 64 << 20
SECONDS = 30.0
_PIECE = 1 << 16


def is_address(text: object) -> bool:
    """Whether a text is an address (``scheme://...``), of any scheme."""
    scheme, mark, _ = str(text).partition("://")
    return isinstance(text, str) and bool(mark) and scheme.replace("+", "").replace("-", "").replace(".", "").isalnum()


def fetch(address: str, *, limit: int = LIMIT, seconds: float = SECONDS) -> bytes:
    """What is at an address.

    Args:
        address: of http or https; letters that addresses cannot hold are escaped.
        limit: bytes at most.
        seconds: for the whole answer; a server that sends a byte now and then does not prolong them.

    Raises:
        UserError: for another scheme, also where a redirection leads to one; an answer other than 200; one that is
            longer than ``limit``, takes longer than ``seconds``, or ends before the length that it told.
    """
    target = _checked(address)
    deadline = time.monotonic() + seconds
    found: queue.Queue[bytes | Exception] = queue.Queue(1)

    def read() -> None:
        try:
            found.put(_read(target, limit, deadline, seconds))
        except Exception as error:
            found.put(error)

    # Time limits of sockets are for one read, and there is none for the look-up of a name or for slow headers.
    threading.Thread(target=read, daemon=True).start()
    try:
        got = found.get(timeout=seconds)
    except queue.Empty:
        raise UserError(f"{address} took longer than {seconds:g} s. Download it, and give the file.") from None
    if isinstance(got, UserError):
        raise UserError(f"{address}: {got}")
    if isinstance(got, Exception):
        raise UserError(f"{address} cannot be read: {_reason(got)}.") from got
    return got


def _checked(address: str) -> str:
    try:
        parts = urllib.parse.urlsplit(address.strip())
        host = (parts.hostname or "").encode("idna").decode()
        port = parts.port
    except (ValueError, UnicodeError) as error:
        raise UserError(f"{address} is no address of a picture ({error}).") from error
    if parts.scheme.lower() not in SCHEMES:
        raise UserError(
            f"{address}: pictures are fetched by {' and '.join(SCHEMES)} only, not by {parts.scheme}. "
            "Give a file by its path."
        )
    if not host:
        raise UserError(f"{address} names no host.")
    host = f"[{host}]" if ":" in host else host
    user, mark, _ = parts.netloc.rpartition("@")
    netloc = f"{user}{mark}{host}" + (f":{port}" if port else "")
    path, query = (urllib.parse.quote(p, safe="%/:=&?~+!$,;'@()*[]") for p in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme.lower(), netloc, path, query, ""))


class _Redirections(urllib.request.HTTPRedirectHandler):
    """Followed between http and https, never away from them, and never from https down to http."""

    def http_error_302(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage) -> Any:
        """Check where it leads."""
        target = urllib.parse.urljoin(req.full_url, headers.get("location") or headers.get("uri") or "")
        scheme = urllib.parse.urlsplit(target).scheme.lower()
        if scheme not in SCHEMES or (req.type == "https" and scheme == "http"):
            raise UserError(f"it redirects from {req.type} to {scheme} ({target}), which is not followed.")
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener() -> urllib.request.OpenerDirector:
    """No handlers of files, data addresses or ftp, which the usual one has."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        _Redirections(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", f"smartclip_det/{__version__}")]
    return opener


def _read(target: str, limit: int, deadline: float, seconds: float) -> bytes:
    with _opener().open(target, timeout=seconds) as answer:
        told = answer.headers.get("Content-Length", "")
        length = int(told) if told.isdigit() else None
        if length is not None and length > limit:
            raise UserError(f"{_size(length)} are more than the {_size(limit)} that a picture may have.")
        parts, count = [], 0
        while piece := answer.read1(_PIECE):
            parts.append(piece)
            count += len(piece)
            if count > limit:
                raise UserError(f"it goes on after the {_size(limit)} that a picture may have.")
            if time.monotonic() > deadline:
                raise TimeoutError
        if length is not None and count < length:
            raise UserError(f"it was cut after {count:,} of {length:,} bytes. Try again.")
    return b"".join(parts)


def _size(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB" if count >= 1 << 20 else f"{count:,} bytes"


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}".splitlines()[0]
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, TimeoutError):
        return "it took too long"
    if isinstance(inner, ssl.SSLError):
        return f"no safe connection ({getattr(inner, 'verify_message', '') or inner.reason})"
    if isinstance(inner, http.client.IncompleteRead):
        return "it was cut in the middle"
    return str(inner) or type(inner).__name__
