"""Image inputs of every type; invalid addresses; folders with broken files."""

from __future__ import annotations

import http.server
import io
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smartclip_det.apis.fetching import fetch, is_address
from smartclip_det.apis.inputs import as_picture, find_images, load_image, read_images
from smartclip_det.core.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)


def png(array=PIXELS):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


class Site(http.server.BaseHTTPRequestHandler):
    """One answer for each path."""

    def do_GET(self):
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        body, headers = {
            "/a.png": (png(), {}),
            "/page": (b"<!doctype html><p>", {"Content-Type": "text/html"}),
            "/empty": (b"", {}),
            "/cut": (png(), {"Content-Length": "5000"}),
            "/broken.png": (png()[:60], {}),
            "/huge": (b"", {"Content-Length": str(10**12)}),
            "/%C3%A9%20x.png": (png(), {}),
        }.get(self.path, (None, {}))
        if self.path in ("/endless", "/drip"):
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x" if self.path == "/drip" else b"x" * 65536)
                    time.sleep(0.05 if self.path == "/drip" else 0)
            except OSError:
                return
        if self.path == "/mute":
            time.sleep(1.5)
            return
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Suppress log output."""


@pytest.fixture(scope="module")
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1")
        yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class TestAddresses:
    def test_a_picture_is_fetched_once(self, site, monkeypatch):
        picture = as_picture(f"{site}/a.png")
        assert np.array_equal(picture.pixels(), PIXELS)
        monkeypatch.setattr("smartclip_det.apis.inputs.fetch", None)
        assert picture.size == (9, 6)
        assert picture.name == f"{site}/a.png"

    def test_redirections_and_odd_letters(self, site):
        assert np.array_equal(load_image(f"{site}/to/{site}/a.png"), PIXELS)
        assert np.array_equal(load_image(f"{site}/é x.png"), PIXELS)

    @pytest.mark.parametrize(
        ("path", "said"),
        [
            ("/none", "the server returned 404"),
            ("/page", "is a web page, not an image"),
            ("/empty", "cannot be read"),
            ("/cut", r"closed after \d+ of 5,000 bytes"),
            ("/broken.png", "cannot be read"),
            ("/huge", "exceeds the limit of 64.0 MiB"),
            ("/to/ftp://127.0.0.1/a.png", "redirects from http to ftp"),
            ("/to/file:///etc/hostname", "redirects from http to file"),
            ("/to/data:image/png;base64,AA", "redirects from http to data"),
            ("/to//to//to/", "cannot be read"),
        ],
    )
    def test_what_is_no_picture_is_told(self, site, path, said):
        with pytest.raises(UserError, match=said) as told:
            load_image(f"{site}{path}")
        assert site in str(told.value)
        assert "\n" not in str(told.value)

    def test_a_body_without_end_is_cut(self, site):
        with pytest.raises(UserError, match="exceeds the limit of 1.0 MiB"):
            fetch(f"{site}/endless", limit=1 << 20)
        for slow in ("/drip", "/mute"):
            start = time.monotonic()
            with pytest.raises(UserError, match="took (longer than 0.3 s|too long)"):
                fetch(f"{site}{slow}", seconds=0.3)
            assert time.monotonic() - start < 1.2

    @pytest.mark.parametrize(
        ("address", "said"),
        [
            ("ftp://a.org/b.png", "not by ftp"),
            ("file:///etc/hostname", "not by file"),
            ("s3://bucket/b.png", "not by s3"),
            ("http://", "has no host"),
            ("https://a.org:port/b.png", "not a valid URL"),
            ("http://127.0.0.1:1/a.png", "refused"),
        ],
    )
    def test_other_addresses(self, address, said, monkeypatch):
        monkeypatch.setenv("no_proxy", "*")
        with pytest.raises(UserError, match=said):
            load_image(address)

    def test_paths_are_no_addresses(self):
        assert not any(is_address(p) for p in ("a.jpg", "C:\\a.jpg", "/a//b.jpg", Path("https://a.org"), "what a://b"))
        assert is_address("HTTP://a.org/b.png")


class TestForms:
    def test_tensors(self):
        tensor = torch.from_numpy(PIXELS)
        for form in (
            tensor,
            tensor.permute(2, 0, 1),
            tensor.permute(2, 0, 1).double() / 255,
            (tensor.permute(2, 0, 1).float() / 255).requires_grad_(),
        ):
            assert np.array_equal(load_image(form), PIXELS)
        for wrong, said in (
            (torch.zeros(4, 4), r"\[3, H, W\]"),
            (torch.randn(3, 4, 4), r"0\.\.1"),
            (torch.zeros(3, 4, 4).long(), "torch.int64"),
            (torch.zeros(3, 0, 4), r"\[3, 0, 4\]"),
            (torch.full((3, 2, 2), float("nan")), r"0\.\.1"),
        ):
            with pytest.raises(UserError, match=said):
                load_image(wrong)

    def test_what_is_no_image(self, tmp_path):
        for wrong in (None, 3, b"\x89PNG", {"a": 1}):
            with pytest.raises(UserError, match="got "):
                load_image(wrong)
            with pytest.raises(UserError, match="got "):
                list(read_images(wrong))
        with pytest.raises(UserError, match="is a folder"):
            load_image(tmp_path)

    def test_lists_and_batches_in_order(self, tmp_path):
        Image.fromarray(PIXELS).save(tmp_path / "a.png")
        batch = np.stack([PIXELS, 255 - PIXELS])
        given = [
            tmp_path / "a.png",
            Image.fromarray(255 - PIXELS),
            batch,
            [torch.from_numpy(batch).permute(0, 3, 1, 2)],
        ]
        found = [pixels for _, pixels in read_images(x for x in given)]
        light = [bool(np.array_equal(p, PIXELS)) for p in found]
        assert light == [True, False, True, False, True, False]

    def test_folders_and_patterns_in_name_order(self, tmp_path, capsys):
        for name in ("b.png", "a.png", "c.JPG"):
            Image.fromarray(PIXELS).save(tmp_path / name)
        (tmp_path / "notes.txt").write_text("x")
        (tmp_path / "inside").mkdir()
        Image.fromarray(PIXELS).save(tmp_path / "inside/d.png")
        assert [Path(p.name).name for p, _ in read_images(tmp_path)] == ["a.png", "b.png", "c.JPG"]
        told = capsys.readouterr().out
        assert "1 .txt" in told
        assert "1 subfolders were not searched" in told
        assert [Path(p.name).name for p, _ in read_images(str(tmp_path / "*.png"))] == ["a.png", "b.png"]
        assert [Path(p.name).name for p, _ in read_images(str(tmp_path / "**/*.png"))] == ["a.png", "b.png", "d.png"]
        assert [p.name for p in find_images([tmp_path], recursive=True)[0]] == ["a.png", "b.png", "c.JPG", "d.png"]
        with pytest.raises(UserError, match=r"No image matches .*\*\.gif"):
            list(read_images(str(tmp_path / "*.gif")))
        with pytest.raises(UserError, match="1 other files do"):
            list(read_images(str(tmp_path / "*.txt")))
        with pytest.raises(UserError, match="Nearest: inside"):
            find_images([tmp_path / "insde"])

    def test_a_name_with_a_bracket_is_a_name(self, tmp_path):
        Image.fromarray(PIXELS).save(tmp_path / "a[1].png")
        assert [p.name for p, _ in read_images(str(tmp_path / "a[1].png"))] == [str(tmp_path / "a[1].png")]

    def test_bad_ones_are_given_to_the_caller_or_are_errors(self, tmp_path):
        (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 cut")
        Image.fromarray(PIXELS).save(tmp_path / "b.png")
        bad = []
        found = list(read_images([tmp_path, tmp_path / "no.png"], on_bad=lambda p, e: bad.append((p.name, str(e)))))
        assert len(found) == 1
        assert [Path(n).name for n, _ in bad] == ["a.jpg", "no.png"]
        assert "cannot be read" in bad[0][1]
        with pytest.raises(UserError, match="cannot be read"):
            list(read_images(tmp_path))
