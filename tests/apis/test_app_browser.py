"""The web page in headless Chromium. Skips with a warning without gradio, playwright or ``chromium`` on the PATH."""

from __future__ import annotations

import io
import json
import os
import shutil
import urllib.request
import warnings

import numpy as np
import pytest
from PIL import Image

from smartclip_det.apis.app.page import PageOptions, build, copy_samples, launch, upload_folder
from smartclip_det.apis.app.sources import Sample
from smartclip_det.visualization.draw import PALETTE
from tests.apis.app_service import tiny_service

pytest.importorskip("gradio", reason='gradio is absent: pip install "smartclip_det[app]"')
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is absent: pip install playwright")


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        message = "no chromium on the PATH: the page is not tested in a browser"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, upload_folder() as folder:
        patch.setenv("SMARTCLIP_DET_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("no_proxy", "127.0.0.1,localhost")
        service, paths = tiny_service(tmp_path_factory.mktemp("page"), 2)
        samples, service.samples = copy_samples([Sample(paths[1], ("a cup", "a dog"))], folder)
        blocks = build(service, samples)
        yield launch(blocks, PageOptions(), folder), service, paths
        blocks.close(verbose=False)


def status(page, kind, words):
    """The answer of a tab, as soon as it contains some words."""
    page.wait_for_function(
        "([kind, words]) => document.querySelector(`#${kind}-status textarea`)?.value.includes(words)",
        arg=[kind, words],
        timeout=60_000,
    )
    return page.locator(f"#{kind}-status textarea").input_value()


def canvas(page, kind, old=None):
    """Pixels and address of the drawn image, as soon as it differs from ``old``."""
    page.wait_for_function(
        "([kind, old]) => { const i = document.querySelector(`#${kind}-boxes img`); return i && i.src !== old; }",
        arg=[kind, old],
        timeout=60_000,
    )
    address = page.locator(f"#{kind}-boxes img").get_attribute("src")
    with urllib.request.urlopen(address, timeout=30) as response:
        return np.asarray(Image.open(io.BytesIO(response.read())).convert("RGB")), address


def coloured(pixels, index):
    """Number of pixels in the colour of the ``index``-th phrase."""
    return int((pixels == PALETTE[index]).all(-1).sum())


def set_slider(page, kind, value):
    field = page.locator(f"#{kind}-threshold input[type=number]")
    field.fill(str(value))
    field.press("Tab")


def test_a_visit(browser, served, tmp_path):
    url, service, paths = served
    page, elsewhere, complaints = browser.new_page(viewport={"width": 1280, "height": 1000}), [], []
    page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else elsewhere.append(r.url))
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.goto(url)
    page.locator("#picture input[type=file]").set_input_files(paths[0])
    page.locator("#phrases textarea").fill("a cup\na dog")
    page.wait_for_selector("#picture img")

    set_slider(page, "detect", 0)
    page.locator("#detect-button").click()
    service.predictor.set_image(paths[0])
    everything = service.predictor.detect(["a cup", "a dog"])
    assert status(page, "detect", "score >= 0.") == f"{len(everything)} boxes with score >= 0."
    pixels, address = canvas(page, "detect")
    assert coloured(pixels, 0) > 100
    assert coloured(pixels, 1) > 100
    page.locator("#detect-copy button").first.click()
    shown = json.loads(page.locator("#detect-json textarea").input_value())
    assert shown["detections"] == everything.to_list()
    assert "smartclip-det demo 'photo 0.png'" in page.locator("#detect-command textarea").input_value()

    # Between the scores of both phrases, so that only boxes of the better one remain.
    threshold = round(float(everything.scores[2]), 2)
    kept = everything.above(threshold)
    assert 0 < len(kept) < len(everything)
    set_slider(page, "detect", threshold)
    assert status(page, "detect", f"score >= {threshold:g}.").startswith(f"{len(kept)} box")
    fewer, _ = canvas(page, "detect", address)
    assert coloured(fewer, 0) + coloured(fewer, 1) < coloured(pixels, 0) + coloured(pixels, 1)

    page.get_by_role("tab", name="Ground").click()
    page.locator("#ground-button").click()
    assert status(page, "ground", "score >= 0.") == "2 boxes with score >= 0."
    canvas(page, "ground")
    page.get_by_role("tab", name="Masks").click()
    page.locator("#masks-button").click()
    status(page, "masks", "of 64")
    page.wait_for_function("document.querySelectorAll('#masks-maps img').length === 2")

    page.get_by_role("tab", name="Detect").click()
    page.locator("#phrases textarea").fill("")
    page.locator("#detect-button").click()
    assert status(page, "detect", "Error").startswith("Error: No phrase.")
    assert page.locator("#detect-boxes img").count() == 0
    (tmp_path / "broken.png").write_text("no image")
    page.locator("#picture button[aria-label^=Remove]").first.click()
    page.locator("#picture input[type=file]").set_input_files(tmp_path / "broken.png")
    page.locator("#phrases textarea").fill("<img src=x onerror=alert(1)>")
    status(page, "detect", "Press Detect.")
    page.locator("#detect-button").click()
    assert "broken.png cannot be read" in status(page, "detect", "Error")

    page.locator("#samples button").first.click()
    status(page, "detect", "score >=")
    assert page.locator("#phrases textarea").input_value() == "a cup\na dog"
    assert elsewhere == []
    assert complaints == []
    page.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(browser, served, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(served[0])
    page.wait_for_selector("#phrases textarea")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if folder := os.environ.get("SMARTCLIP_DET_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/app-{width}.png", full_page=True)
    page.close()
