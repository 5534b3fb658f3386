"""The web page without gradio: answers, state, rejected input, and the code that reproduces its answers."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from smartclip_det import Detections, Predictor, UserError
from smartclip_det.apis.app import service as service_module
from smartclip_det.apis.app.page import copy_samples
from smartclip_det.apis.app.service import AppService, LruDict, read_phrases
from smartclip_det.apis.app.snippets import Query, command_line, python_lines
from smartclip_det.apis.app.sources import AppOptions, Sample, source_of, toy_scenes
from smartclip_det.apis.predictor_options import PredictorOptions, load_predictor
from smartclip_det.apis.toy_run import TOY_DETECTOR
from smartclip_det.cli import dispatch
from smartclip_det.models.towers import SmartCLIP
from tests.apis.app_service import tiny_service, write_images

#: Quotes, a shell variable, a leading dash, non-ASCII letters.
PHRASES = ["a cup", 'it\'s a $HOME "cup"', "-x", "été; rm `x`"]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMARTCLIP_DET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_service(tmp_path_factory.mktemp("app"), 3)


@pytest.fixture
def counted(tiny, monkeypatch):
    """A new service, its images, and the predictor's calls."""
    calls = []
    for name in ("encode_image", "detect", "ground", "explain"):
        method = getattr(Predictor, name)
        monkeypatch.setattr(
            Predictor, name, lambda self, *a, _name=name, _do=method, **k: (calls.append(_name), _do(self, *a, **k))[1]
        )
    return AppService(tiny[0].predictor, tiny[0].options), tiny[1], calls


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    """A toy run's checkpoints with random weights, and a world of two scenes, one of which has two objects."""
    folder = tmp_path_factory.mktemp("toy")
    torch.manual_seed(0)
    predictor = Predictor.from_config(TOY_DETECTOR, use_cache=False, device="cpu")
    (folder / "checkpoints").mkdir()
    torch.save({"state_dict": predictor.detector.state_dict()}, folder / "checkpoints/detector.pth")
    SmartCLIP.from_arch("SmartCLIP-toy", seed=0).save(folder / "checkpoints/smartclip.pth", layout="native")
    objects = [{"colour": "red", "shape": "star"}, {"colour": "blue", "shape": "ring"}]
    scenes = [{"id": n, "grey": False, "objects": objects[: n + 1]} for n in range(2)]
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(2)]
    (folder / "annotations").mkdir()
    (folder / "annotations/scenes_val.json").write_text(json.dumps(scenes))
    (folder / "annotations/instances_val.json").write_text(json.dumps({"images": images, "annotations": []}))
    (folder / "images/val").mkdir(parents=True)
    for n in range(2):
        pixels = np.random.default_rng(n).integers(0, 255, (128, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/val/{n}.png")
    (folder / "world.json").write_text("{}")
    (folder / "facts.json").write_text(json.dumps({"data": str(folder), "quick": True}))
    return folder


def ask(service, kind, path, phrases, threshold=0.0, top_k=2):
    text = "\n".join(phrases)
    if kind == "masks":
        return service.masks("user", path, text)
    return (
        service.detect("user", path, text, threshold)
        if kind == "detect"
        else service.ground("user", path, text, threshold, top_k)
    )


def run_command(command, folder, capsys):
    """Answers of ``smartclip-det demo``, parsed as a shell would."""
    argv = shlex.split(command)
    assert argv[:2] == ["smartclip-det", "demo"]
    with pytest.raises(SystemExit) as left:
        dispatch.main([*argv[1:], "--out", str(folder)])
    assert left.value.code == 0, capsys.readouterr().err
    (answer,) = folder.glob("*.json")
    return json.loads(answer.read_text())


def run_lines(lines):
    names = {}
    exec(compile(lines, "snippet", "exec"), names)
    return names["found"]


@pytest.mark.parametrize("kind", ["detect", "ground"])
def test_command_and_python_lines_give_the_answer_of_the_page(tiny, kind, tmp_path, monkeypatch, capsys):
    service, paths = tiny
    monkeypatch.chdir(paths[0].parent)
    view = ask(service, kind, paths[0], PHRASES, threshold=0.46)
    shown = json.loads(view.data)
    everything = json.loads(ask(service, kind, paths[0], PHRASES).data)["detections"]
    assert 0 < len(shown["detections"]) < len(everything)
    answer = run_command(view.command, tmp_path / "out", capsys)
    assert answer["detections"] == shown["detections"]
    assert answer["texts"] == shown["texts"] == PHRASES
    found = run_lines(view.lines)
    parts = found if kind == "ground" else [found]
    assert [d for part in parts for d in part.to_list()] == shown["detections"]


def test_command_and_python_lines_give_the_masks_of_the_page(tiny, tmp_path, monkeypatch, capsys):
    service, paths = tiny
    monkeypatch.chdir(paths[0].parent)
    view = ask(service, "masks", paths[0], PHRASES)
    shown = json.loads(view.data)["texts"]
    run_command(view.command, tmp_path / "out", capsys)
    strip = Image.open(tmp_path / "out/photo 0_masks.png").convert("RGB")
    assert strip.tobytes() == view.picture.convert("RGB").tobytes()
    assert len(list((tmp_path / "out").glob("photo 0_map*.png"))) == len(view.maps) == len(PHRASES)
    found = run_lines(view.lines)
    assert [e.mask.nonzero()[0].tolist() for e in found] == [t["kept"] for t in shown]
    assert len({tuple(t["kept"]) for t in shown}) > 1
    assert view.rows[0][1:3] == (len(shown[0]["kept"]), f"{len(shown[0]['kept']) / shown[0]['of']:.0%}")


def test_a_toy_run_answers_with_its_template_and_scenes(toy_run, tmp_path, capsys):
    source = source_of(AppOptions(toy=toy_run, device="cpu"))
    assert source.samples == (Sample(toy_run / "images/val/1.png", ("red star", "blue ring")),)
    samples, known = copy_samples(source.samples, tmp_path / "uploads")
    service = AppService(load_predictor(source.predictor), source.predictor, known)
    view = ask(service, "detect", samples[0].path, samples[0].phrases, threshold=0.02)
    shown = json.loads(view.data)
    # The copy is shown under the path of the original.
    assert shown["image"] == str(toy_run / "images/val/1.png")
    assert len(shown["detections"]) > 0
    assert run_command(view.command, tmp_path / "out", capsys)["detections"] == shown["detections"]
    assert run_lines(view.lines).to_list() == shown["detections"]
    assert service.predictor.templates == ("{article} {}",)


def test_an_installed_command_takes_the_command_line_from_a_shell(tmp_path):
    """The command is quoted for a shell, so a shell must parse it."""
    command = command_line(PredictorOptions(encoder="w.pt"), Query("detect", "-a b.png", tuple(PHRASES), 0.5))
    script = command.replace("smartclip-det", f"{shlex.quote(sys.executable)} -c 'import sys; print(sys.argv[1:])'", 1)
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    texts = [f"--texts={p}" for p in PHRASES]
    assert said.strip() == str(["demo", "./-a b.png", *texts, "--encoder", "w.pt", "--threshold", "0.5"])


def test_python_lines_name_all_options():
    detector = PredictorOptions("c.py", "w.pth", "t.pth", device="cpu", templates=["{}"])
    lines = python_lines(detector, Query("detect", "a.png", ("x",), 0.25)).splitlines()
    assert lines[2:9] == [
        "predictor = Predictor.from_config(",
        "    'c.py', 'w.pth',",
        "    cfg_options={'towers.checkpoint': 't.pth'},",
        "    templates=['{}'],",
        "    device='cpu',",
        ")",
        "predictor.set_image('a.png')",
    ]


def test_thresholds_act_on_kept_answers(counted):
    service, paths, calls = counted
    everything = json.loads(ask(service, "detect", paths[0], PHRASES).data)["detections"]
    for threshold in (0.3, 0.46, 0.99, 0.0):
        view = ask(service, "detect", paths[0], PHRASES, threshold)
        assert json.loads(view.data)["detections"] == [d for d in everything if d["score"] >= threshold]
        assert [r[:2] for r in view.rows] == [
            (d["name"], round(d["score"], 4)) for d in everything if d["score"] >= threshold
        ]
    assert calls == ["encode_image", "detect"]
    ask(service, "ground", paths[0], ["a cup"], 0.0)
    ask(service, "ground", paths[0], ["a cup"], 0.5)
    ask(service, "masks", paths[0], ["a cup"])
    assert calls == ["encode_image", "detect", "ground", "explain"]
    ask(service, "ground", paths[0], ["a cup"], top_k=3)
    ask(service, "detect", paths[0], ["a dog"])
    assert calls[4:] == ["ground", "detect"]


def test_every_user_has_a_cache_with_a_limit(counted):
    service, paths, calls = counted
    service.detect("a", paths[0], "a cup", 0.0)
    service.detect("b", paths[0], "a cup", 0.0)
    assert calls == ["encode_image", "detect"] * 2
    service.forget("a")
    service.detect("b", paths[0], "a cup", 0.1)
    assert len(calls) == 4
    service.detect("a", paths[0], "a cup", 0.1)
    assert len(calls) == 6
    for n in range(service_module.USERS):
        service.detect(f"u{n}", paths[1], "a cup", 0.0)
    assert len(service._users) == service_module.USERS
    before = len(calls)
    service.detect("b", paths[0], "a cup", 0.1)
    assert calls[before:] == ["encode_image", "detect"]


def test_the_oldest_entry_goes_first():
    kept = LruDict(2)
    made = []
    for key in "abacab":
        kept.get_or_make(key, lambda key=key: made.append(key))
    assert made == ["a", "b", "c", "b"]
    assert list(kept) == ["a", "b"]


def test_the_drawn_boxes_are_those_of_the_answer(tiny):
    service, paths = tiny
    view = ask(service, "detect", paths[0], ["a cup"])
    drawn = view.picture
    assert drawn.width == service_module.NARROW
    scale = drawn.width / Image.open(paths[0]).width
    plain = Image.open(paths[0]).resize(drawn.size, Image.Resampling.NEAREST)
    changed = np.abs(np.asarray(drawn, int) - np.asarray(plain, int)).sum(-1) > 0
    for _, _, x1, y1, x2, y2 in view.rows:
        middle = int((y1 + y2) / 2 * scale)
        for x in (x1, x2):
            assert changed[middle, max(0, int(x * scale) - 4) : int(x * scale) + 5].any()


def test_what_is_refused(tiny, tmp_path, monkeypatch):
    service, paths = tiny
    for picture, text, says in (
        (None, "a cup", "No image. Upload one"),
        (paths[0], " \n\t\n", "No phrase"),
        (paths[0], "\n".join(map(str, range(101))), "101 phrases given; the page takes at most 100"),
        (tmp_path / "gone.png", "a cup", "gone.png is no longer on the server"),
    ):
        with pytest.raises(UserError, match=says):
            service.detect("user", picture, text, 0.5)
    with pytest.raises(UserError, match="at most 12"):
        service.masks("user", paths[0], "\n".join(map(str, range(13))))
    with pytest.raises(UserError, match="between 0 and 1"):
        service.detect("user", paths[0], "a cup", 1.5)
    with pytest.raises(UserError, match="at least 1"):
        service.ground("user", paths[0], "a cup", 0.5, 0)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text\.png cannot be read") as error:
        service.detect("user", tmp_path / "text.png", "a cup", 0.5)
    assert str(tmp_path) not in str(error.value)
    monkeypatch.setattr(service_module, "PIXELS", 100)
    with pytest.raises(UserError, match="64 x 48 pixels"):
        AppService(service.predictor, service.options).detect("user", paths[0], "a cup", 0.5)


def test_the_status_says_what_is_drawn_and_what_is_near():
    opened = service_module.EncodedPicture("a.png", None, Image.new("RGB", (64, 64)), 1.0)
    boxes = np.array([[n, n, n + 9, n + 9] for n in range(30)], float)
    found = Detections(boxes, np.linspace(0.8, 0.5, 30), np.zeros(30, int), ("a cup",))
    status = [service_module._view_of_boxes(opened, found, t, ("", "")).status for t in (0, 0.7951, 0.9)]
    assert status == [
        "30 boxes with score >= 0. The best 20 are drawn; the table and the JSON list all.",
        "1 box with score >= 0.7951.",
        "0 boxes with score >= 0.9. Best scores: a cup 0.800, a cup 0.790, a cup 0.779.",
    ]


def test_phrases_are_lines():
    assert read_phrases("  a cup \r\n\n left dog\t\n") == ("a cup", "left dog")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, r"No finished toy run in .*make toy.* or --encoder NAME"),
        ({"checkpoint": "w.pth"}, "--checkpoint requires --config"),
        ({"boxes": "torchvision"}, "--boxes requires --encoder"),
        ({"encoder": "w.pt", "samples": ["absent"]}, "absent does not exist"),
    ],
)
def test_sources_that_are_refused(tmp_path, options, says):
    from pathlib import Path

    options = {**options, "samples": [Path(p) for p in options.get("samples", [])]}
    with pytest.raises(UserError, match=says):
        source_of(AppOptions(toy=tmp_path, data=tmp_path, **options))


def test_a_toy_run_without_towers_names_what_is_absent(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/detector.pth").touch()
    (tmp_path / "facts.json").write_text(json.dumps({"data": "absent", "quick": True}))
    with pytest.raises(UserError, match=r"smartclip\.pth.* --config CONFIG --checkpoint FILE, or --encoder NAME"):
        source_of(AppOptions(toy=tmp_path, data=tmp_path))


def test_a_quick_toy_run_is_found_and_its_scenes_may_be_elsewhere(toy_run, tmp_path, monkeypatch):
    (tmp_path / "work_dirs").mkdir()
    (tmp_path / "work_dirs/toy_quick").symlink_to(toy_run)
    monkeypatch.chdir(tmp_path)
    source = source_of(AppOptions())
    assert source.predictor.checkpoint == "work_dirs/toy_quick/checkpoints/detector.pth"
    assert [s.path for s in source.samples] == [toy_run / "images/val/1.png"]
    assert source_of(AppOptions(data=tmp_path)).samples == ()


def test_galleries(tmp_path):
    assert toy_scenes(tmp_path) == ()
    paths = write_images(tmp_path / "photos", 14)
    source = source_of(AppOptions(encoder="w.pt", samples=[tmp_path / "photos"]))
    assert len(source.samples) == 12
    assert {s.path for s in source.samples} < set(paths)
    assert source.predictor == PredictorOptions(encoder="w.pt")
