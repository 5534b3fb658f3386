"""Draw the pictures of the documentation from a finished toy run: `python docs/pictures/make.py`."""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image

from smartclip_det import Predictor
from smartclip_det.apis.app.page import PageOptions, build, copy_samples, launch, upload_folder
from smartclip_det.apis.app.service import AppService
from smartclip_det.apis.app.sources import AppOptions, source_of
from smartclip_det.apis.predictor_options import load_predictor
from smartclip_det.formats.json_files import read_json
from smartclip_det.studies.toy_pictures import ToyPictures, enlarge
from smartclip_det.visualization import draw_boxes

FOLDER = Path(__file__).parent


def first_answer(predictor: Predictor, data: Path, count: int = 4) -> Image.Image:
    """Validation scenes with two objects, side by side, each with detections of its names."""
    scenes = read_json(data / "annotations/scenes_val.json", "scene file")
    names = {i["id"]: i for i in read_json(data / "annotations/instances_val.json", "annotations")["images"]}
    square = [s for s in scenes if len(s["objects"]) == 2 and names[s["id"]]["width"] == names[s["id"]]["height"]]
    tiles = []
    for scene in square[:count]:
        phrases = list(dict.fromkeys(f"{o['colour']} {o['shape']}" for o in scene["objects"]))
        image = Image.open(data / "images/val" / names[scene["id"]]["file_name"]).convert("RGB")
        predictor.set_image(image)
        found = predictor.detect(phrases).top(len(scene["objects"]))
        large = enlarge(image)
        scale = large.width / image.width
        tiles.append(
            draw_boxes(large, (found.boxes * scale).tolist(), found.label_names, found.names, found.scores.tolist())
        )
    row = Image.new("RGB", (sum(t.width for t in tiles) + 8 * (count - 1), tiles[0].height), "white")
    for n, tile in enumerate(tiles):
        row.paste(tile, (n * (tile.width + 8), 0))
    return row


def app_page(run: Path, data: Path, sample: int = 2, width: int = 1100) -> Image.Image:
    """Screenshot of ``smartclip-det app`` after a click on a sample, in headless Chromium (extra ``dev``)."""
    from playwright.sync_api import sync_playwright

    source = source_of(AppOptions(toy=run, data=data, device="cpu"))
    with upload_folder() as folder, sync_playwright() as driver:
        samples, originals = copy_samples(source.samples, folder)
        service = AppService(load_predictor(source.predictor), source.predictor, originals)
        blocks = build(service, samples)
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto(launch(blocks, PageOptions(), folder))
        page.locator("#samples button").nth(sample).click()
        page.wait_for_function("document.querySelector('#detect-status textarea').value.includes('score')")
        page.wait_for_function("document.querySelector('#detect-boxes img')?.complete")
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)  # Wait for transitions.
        taken = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
        browser.close()
        blocks.close(verbose=False)
    return taken


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("work_dirs/toy"), help="folder of smartclip-det toy")
    parser.add_argument("--data", type=Path, default=Path("data/toy"), help="its world")
    options = parser.parse_args()
    trained = Predictor.from_config(
        "toy/open-vocab-rcnn_smartclip-toy_toy",
        options.run / "checkpoints/detector.pth",
        device="cpu",
        cfg_options={"towers.checkpoint": str(options.run / "checkpoints/smartclip.pth")},
        templates=["{article} {}"],
    )
    first_answer(trained, options.data).quantize(64).save(FOLDER / "first-answer.png", optimize=True)
    checkpoints = {n: str(options.run / f"checkpoints/{n}.pth") for n in ("smartclip", "detector")}
    facts = {
        "data": str(options.data),
        "towers": {"smartclip": checkpoints["smartclip"]},
        "config": "toy/open-vocab-rcnn_smartclip-toy_toy",
        "detector": checkpoints["detector"],
    }
    ToyPictures(options.run, facts).idea().quantize(64).save(FOLDER / "masked-cosine.png", optimize=True)
    app_page(options.run, options.data).quantize(256).save(FOLDER / "app.png", optimize=True)
