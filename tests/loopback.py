"""Server on the loopback address that implements the Hugging Face hub's protocol, and plain files with ranges."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import threading
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Repository:
    """A hub repository; all files except ``.json`` are large (LFS)."""

    files: dict[str, bytes] = field(default_factory=dict)
    gated: bool = False
    commit: str = COMMIT


class Loopback:
    """Two ports, because the hub has two hosts: one for metadata, one for the contents of large files.

    ``cuts`` maps the end of a path to the numbers of bytes after which the next responses break off; ``lies`` maps it
    to contents that differ from the metadata; ``requests`` records method, path and range.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.files: dict[str, bytes] = {}
        self.without_ranges = False
        self.reset()
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self)) for _ in range(2)]
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.url, self.contents = (f"http://127.0.0.1:{s.server_address[1]}" for s in self._servers)

    def reset(self):
        self.cuts: dict[str, list[int]] = {}
        self.lies: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.without_ranges = False

    def close(self):
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def asked(self, method: str = "GET") -> list[tuple[str, str | None]]:
        """Paths and ranges of requested contents."""
        return [(p, r) for m, p, r in self.requests if m == method and "/api/" not in p]

    def answer(self, request):
        path = urllib.parse.unquote(request.path.split("?")[0])
        self.requests.append((request.command, path, request.headers.get("Range")))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            return self._listing(request, found[1])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(request, found[1], found[2], found[3])
        if path.startswith("/cdn/"):
            content = next(c for r in self.repositories.values() for c in r.files.values() if sha(c) == path[5:69])
            return self._content(request, path, content)
        if path in self.files:
            return self._content(request, path, self.files[path])
        return self._refuse(request, 404, "")

    def _refuse(self, request, status, code):
        request.send_response(status)
        if code:
            request.send_header("X-Error-Code", code)
            request.send_header("X-Error-Message", code)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def _repository(self, request, name):
        repository = self.repositories.get(name)
        if repository is None:
            self._refuse(request, 401, "RepoNotFound")
            return None
        if repository.gated and request.headers.get("Authorization") != "Bearer hf_allowed":
            self._refuse(request, 403, "GatedRepo")
            return None
        return repository

    def _listing(self, request, name):
        repository = self._repository(request, name)
        if repository is not None:
            told = {"id": name, "sha": repository.commit, "siblings": [{"rfilename": f} for f in repository.files]}
            self._send(request, 200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    def _resolve(self, request, name, revision, file):
        repository = self._repository(request, name)
        if repository is None:
            return None
        if revision not in ("main", repository.commit):
            return self._refuse(request, 404, "RevisionNotFound")
        headers = {"X-Repo-Commit": repository.commit}
        if file not in repository.files:
            request.send_response(404)
            for key, value in {**headers, "X-Error-Code": "EntryNotFound", "Content-Length": "0"}.items():
                request.send_header(key, value)
            return request.end_headers()
        content = repository.files[file]
        if file.endswith(".json"):
            etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            return self._content(request, request.path, content, {**headers, "ETag": f'"{etag}"'})
        headers |= {
            "X-Linked-Etag": f'"{sha(content)}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"{self.contents}/cdn/{sha(content)}/{file}",
        }
        return self._send(request, 302, b"", headers)

    def _content(self, request, path, content, headers=None):
        content = next((c for end, c in self.lies.items() if path.endswith(end)), content)
        headers = {"Accept-Ranges": "bytes", "ETag": f'"{sha(content)}"', **(headers or {})}
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or "")
        status = 200
        if wanted and not self.without_ranges and request.headers.get("If-Range") in (None, headers["ETag"]):
            start, status = int(wanted[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content = content[start:]
        cut = next((c for end, c in self.cuts.items() if path.endswith(end) and c), None)
        self._send(request, status, content, headers, cut.pop(0) if cut and request.command == "GET" else None)

    def _send(self, request, status, content, headers, cut=None):
        request.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content if cut is None else content[:cut])
            if cut is not None:
                request.close_connection = True


def handler_of(loopback: Loopback) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_HEAD(self):
            loopback.answer(self)

        def do_GET(self):
            loopback.answer(self)

    return Handler


@functools.lru_cache
def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
