"""Download images from URLs: http and https only, with limits on size and time, and one-line error messages."""

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
#: Maximum bytes and seconds per image. The time covers the whole response, including DNS lookup.
LIMIT = 64 << 20
SECONDS = 30.0
_PIECE = 1 << 16


def is_address(text: object) -> bool:
    """Whether a text is a URL (``scheme://...``), of any scheme."""
    scheme, mark, _ = str(text).partition("://")
    return isinstance(text, str) and bool(mark) and scheme.replace("+", "").replace("-", "").replace(".", "").isalnum()


def fetch(address: str, *, limit: int = LIMIT, seconds: float = SECONDS) -> bytes:
    """Download a URL.

    Args:
        address: http or https URL; characters not allowed in URLs are escaped.
        limit: maximum size in bytes.
        seconds: time limit for the whole response, also for a server that trickles bytes.

    Raises:
        UserError: for another scheme, also after a redirect; a status other than 200; a response longer than
            ``limit``, slower than ``seconds``, or shorter than its declared length.
    """
    target = _checked(address)
    deadline = time.monotonic() + seconds
    results: queue.Queue[bytes | Exception] = queue.Queue(1)

    def read() -> None:
        try:
            results.put(_read(target, limit, deadline, seconds))
        except Exception as error:
            results.put(error)

    # Socket timeouts apply to single reads, and do not cover DNS lookup or slow headers.
    threading.Thread(target=read, daemon=True).start()
    try:
        result = results.get(timeout=seconds)
    except queue.Empty:
        raise UserError(f"{address} took longer than {seconds:g} s. Download it and pass the file.") from None
    if isinstance(result, UserError):
        raise UserError(f"{address}: {result}")
    if isinstance(result, Exception):
        raise UserError(f"{address} cannot be read: {_reason(result)}.") from result
    return result


def _checked(address: str) -> str:
    try:
        parts = urllib.parse.urlsplit(address.strip())
        host = (parts.hostname or "").encode("idna").decode()
        port = parts.port
    except (ValueError, UnicodeError) as error:
        raise UserError(f"{address} is not a valid URL ({error}).") from error
    if parts.scheme.lower() not in SCHEMES:
        raise UserError(
            f"{address}: images are downloaded by {' and '.join(SCHEMES)} only, not by {parts.scheme}. "
            "Pass a local file by its path."
        )
    if not host:
        raise UserError(f"{address} has no host.")
    host = f"[{host}]" if ":" in host else host
    user, mark, _ = parts.netloc.rpartition("@")
    netloc = f"{user}{mark}{host}" + (f":{port}" if port else "")
    path, query = (urllib.parse.quote(p, safe="%/:=&?~+!$,;'@()*[]") for p in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme.lower(), netloc, path, query, ""))


class _Redirections(urllib.request.HTTPRedirectHandler):
    """Follow redirects between http and https only, and never from https down to http."""

    def http_error_302(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage) -> Any:
        """Check the target of a redirect."""
        target = urllib.parse.urljoin(req.full_url, headers.get("location") or headers.get("uri") or "")
        scheme = urllib.parse.urlsplit(target).scheme.lower()
        if scheme not in SCHEMES or (req.type == "https" and scheme == "http"):
            raise UserError(f"it redirects from {req.type} to {scheme} ({target}), which is not followed.")
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener() -> urllib.request.OpenerDirector:
    """Build an opener without the default handlers for files, data URLs and ftp."""
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
        declared = answer.headers.get("Content-Length", "")
        length = int(declared) if declared.isdigit() else None
        if length is not None and length > limit:
            raise UserError(f"its size of {_size(length)} exceeds the limit of {_size(limit)}.")
        parts, count = [], 0
        while piece := answer.read1(_PIECE):
            parts.append(piece)
            count += len(piece)
            if count > limit:
                raise UserError(f"it exceeds the limit of {_size(limit)}.")
            if time.monotonic() > deadline:
                raise TimeoutError
        if length is not None and count < length:
            raise UserError(f"the connection closed after {count:,} of {length:,} bytes. Try again.")
    return b"".join(parts)


def _size(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB" if count >= 1 << 20 else f"{count:,} bytes"


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server returned {error.code} {error.reason}".splitlines()[0]
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, TimeoutError):
        return "it took too long"
    if isinstance(inner, ssl.SSLError):
        return f"no secure connection ({getattr(inner, 'verify_message', '') or inner.reason})"
    if isinstance(inner, http.client.IncompleteRead):
        return "the connection closed early"
    return str(inner) or type(inner).__name__
