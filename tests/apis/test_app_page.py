"""The web page as a server: concurrent users, and what it must not serve. Skips without gradio (extra ``app``)."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from smartclip_det import UserError
from smartclip_det.apis.app import service as service_module
from smartclip_det.apis.app.page import PageOptions, build, copy_samples, launch, stopped_by_signals, upload_folder
from smartclip_det.apis.app.sources import Sample
from smartclip_det.apis.demo import answer
from tests.apis.app_service import tiny_service
from tests.conftest import REPO

pytest.importorskip("gradio", reason='gradio is absent: pip install "smartclip_det[app]"')
CLIENTS, REQUESTS = 20, 10
PHRASES = ["a cup", "a red dog", "the left chair", "two birds"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """URL, service, images and upload folder of a page with one sample and a limit of 1 MB."""
    with pytest.MonkeyPatch.context() as patch, upload_folder() as folder:
        patch.setenv("SMARTCLIP_DET_CACHE", str(tmp_path_factory.mktemp("cache")))
        # Small images are written faster.
        patch.setattr(service_module, "NARROW", 64)
        patch.setenv("no_proxy", "127.0.0.1,localhost")
        # Set for other apps; this one must ignore it.
        patch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
        patch.setenv("GRADIO_SHARE", "True")
        patch.setenv("GRADIO_ALLOWED_PATHS", "/")
        service, paths = tiny_service(tmp_path_factory.mktemp("page"), CLIENTS)
        samples, service.samples = copy_samples([Sample(paths[0], ("a cup",))], folder)
        blocks = build(service, samples)
        url = launch(blocks, PageOptions(max_upload=1), folder)
        yield url, service, paths, folder, blocks
        blocks.close(verbose=False)


class User:
    """A session that implements gradio's protocol: upload, call, read the event."""

    def __init__(self, url):
        self.api, self.session = f"{url}gradio_api/", uuid.uuid4().hex

    def send(self, path, body, kind):
        request = urllib.request.Request(self.api + path, body, {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=200) as response:
            return json.load(response)

    def upload(self, path):
        head = f'--end\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'
        body = head.encode() + path.read_bytes() + b"\r\n--end--\r\n"
        (place,) = self.send("upload", body, "multipart/form-data; boundary=end")
        return picture(place, path.name)

    def ask(self, kind, *values):
        """Values of the outputs; None for an error raised by gradio."""
        body = json.dumps({"data": values, "session_hash": self.session}).encode()
        event = self.send(f"call/{kind}", body, "application/json")["event_id"]
        with urllib.request.urlopen(f"{self.api}call/{kind}/{event}", timeout=200) as response:
            lines = response.read().decode().splitlines()
        last = max(n for n, line in enumerate(lines) if line.startswith("event: "))
        return json.loads(lines[last + 1].removeprefix("data: ")) if lines[last] == "event: complete" else None


def picture(place, name):
    return {"path": str(place), "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def get(url, path):
    """Status and content."""
    try:
        with urllib.request.urlopen(
            f"{url}gradio_api/file={urllib.parse.quote(str(path), safe='/%')}", timeout=30
        ) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_twenty_users_at_once_get_their_own_answers(page):
    url, service, paths, *_ = page

    def use(n):
        """Each user has an image, and requests different phrases and thresholds in two tabs."""
        mine, answers = User(url), []
        image = mine.upload(paths[n])
        for m in range(REQUESTS):
            phrases, threshold = [PHRASES[(n + m) % 4], PHRASES[(n + m + 1) % 4]], (n + m) % 5 * 0.2
            kind, more = ("ground", (2,)) if m % 3 == 2 else ("detect", ())
            out = mine.ask(kind, image, "\n".join(phrases), threshold, *more)
            answers.append((n, kind == "ground", phrases, threshold, json.loads(out[3])))
        return answers

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [a for found in pool.map(use, range(CLIENTS)) for a in found]
    assert len(answers) == CLIENTS * REQUESTS
    seen = set()
    for n, ground, phrases, threshold, shown in answers:
        service.predictor.set_image(paths[n])
        found = answer(service.predictor, phrases, ground=ground, top_k=2).above(threshold)
        name = str(paths[n]) if n == 0 else paths[n].name
        assert shown == {"image": name, "texts": phrases, "detections": found.to_list()}
        seen.add(json.dumps(shown))
    # Identical answers would hide a mix-up.
    assert len(seen) > len(answers) / 2


def test_only_the_upload_folder_is_served(page, tmp_path):
    url, _, paths, folder, _ = page
    (tmp_path / "secret.txt").write_text("Paris")
    inside = next(p for p in Path(folder).rglob("*.png"))
    assert get(url, inside)[0] == 200
    for path in (
        "/etc/passwd",
        f"{folder}/../../etc/passwd",
        f"{folder}/%2e%2e/%2e%2e/etc/passwd",
        tmp_path / "secret.txt",
        paths[1],
        REPO / "setup.cfg",
        "setup.cfg",
        Path(folder).parent / "gradio/x.png",
    ):
        status, content = get(url, path)
        assert status in (403, 404), path
        assert b"root:" not in content
        assert b"Paris" not in content


def test_a_path_of_the_server_is_no_upload(page):
    url, _, paths, folder, _ = page
    mine = User(url)
    for path in ("/etc/passwd", paths[1], f"{folder}/../{paths[1].relative_to(Path(folder).parent)}"):
        assert mine.ask("detect", picture(path, "a.png"), "a cup", 0.5) is None, path
    assert mine.ask("detect", mine.upload(paths[1]), "a cup", 0.0)[0].endswith("with score >= 0.")


def test_large_uploads_are_refused(page, tmp_path):
    (tmp_path / "large.png").write_bytes(os.urandom(1_100_000))
    with pytest.raises(urllib.error.HTTPError) as error:
        User(page[0]).upload(tmp_path / "large.png")
    assert error.value.code == 413


def test_errors_are_text_on_the_page(page, tmp_path, monkeypatch):
    url, service, paths, *_ = page
    mine = User(url)
    (tmp_path / "text.png").write_text("no image")
    status, drawn, *_, data, command, lines = mine.ask("detect", mine.upload(tmp_path / "text.png"), "a cup", 0.5)
    assert status.startswith("Error: The image text.png cannot be read")
    assert (drawn, data, command, lines) == (None, "", "", "")
    assert mine.ask("detect", None, "a cup", 0.5)[0] == "Error: No image. Upload one or choose a sample."
    image = mine.upload(paths[1])
    assert mine.ask("masks", image, "")[0].startswith("Error: No phrase")
    # An internal error: no server details are shown.
    monkeypatch.setattr(service.predictor.family, "explain", lambda *a: 1 / 0)
    assert mine.ask("masks", image, "x")[0] == "Error: ZeroDivisionError on the server; see its log."


def test_the_page_stays_on_this_machine(page):
    url, _, _, _, blocks = page
    assert url.startswith("http://127.0.0.1:")
    assert (blocks.server_name, blocks.share, blocks.share_url, blocks.analytics_enabled) == (
        "127.0.0.1",
        False,
        None,
        False,
    )
    with urllib.request.urlopen(url, timeout=30) as response:
        assert b"fonts.googleapis" not in response.read()


def test_a_port_in_use_is_named(page):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1, port {port}"):
            launch(build(page[1]), PageOptions(port=port), page[3])


def test_ports_out_of_range_are_refused():
    with pytest.raises(UserError, match="port must be in 1 to 65535; given 65536"):
        PageOptions(port=65536)
    assert PageOptions(port=65535).port == 65535


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_uploads_are_removed_when_the_server_is_ended(number):
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals need the main thread")
    used = []

    def serve():
        with stopped_by_signals(), upload_folder() as folder:
            (folder / "photo.png").write_bytes(b"private")
            used.append(folder)
            os.kill(os.getpid(), number)

    # Tests that run in the background may have started with hang-ups ignored.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended:
            serve()
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert ended.value.code == 128 + number
    assert not used[0].exists()


def test_an_ignored_hangup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
