"""tools/ground.py on real photographs and saved boxes, and its messages for bad input."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from smartclip_det.formats.expressions.jsonl import write_expressions
from smartclip_det.formats.expressions.loading import load_expressions
from smartclip_det.formats.expressions.record import Expression
from smartclip_det.metrics.referring import box_overlap
from smartclip_det.models.towers import SmartCLIP
from tests.tools.test_runs import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("towers")
    return [SmartCLIP.from_arch("SmartCLIP-tiny", seed=s).save(folder / f"{s}.safetensors") for s in (0, 1)]


def test_real_sentences_on_a_detectors_boxes(shared, towers, tmp_path):
    """A subset of testA with MAttNet's boxes: upper bound, chance, and equal metrics from the saved file."""
    folder = shared / "refcoco_testA_slice"
    everything = load_expressions(folder / "refs(unc).p")
    real = [e for e in everything if (folder / "images" / e.file_name).is_file()]
    rows = json.loads((folder / "testA_refcoco_unc_dets_slice.json").read_text())
    boxes = {r["sent"]: [[x, y, x + w, y + h] for x, y, w, h in r["pred_boxes"]] for r in rows}
    write_expressions(tmp_path / "real.jsonl", real)
    lines = [
        {"id": e.id, "boxes": boxes[e.sentence], "scores": [1 - n / 99 for n in range(len(boxes[e.sentence]))]}
        for e in real
    ]
    (tmp_path / "boxes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    call = [
        "tools/ground.py",
        tmp_path / "real.jsonl",
        "--images",
        folder / "images",
        "--checkpoint",
        *towers,
        "--proposals",
        tmp_path / "boxes.jsonl",
        "--views",
        "crop",
        "dense",
        "--reading",
        "both",
        "--mask-modes",
        "hard",
        "off",
        "--detector-weight",
        "0.5",
        "--max-proposals",
        "50",
    ]
    run(*call, "--out", tmp_path / "found.jsonl", "--cache", tmp_path / "vectors")
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "vectors").iterdir()}
    run(*call, "--out", tmp_path / "again.jsonl", "--cache", tmp_path / "vectors")
    assert (tmp_path / "again.hard.jsonl").read_bytes() == (tmp_path / "found.hard.jsonl").read_bytes()
    assert kept == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "vectors").iterdir()}
    content = json.loads((tmp_path / "found.metrics.json").read_text())
    hits = [[box_overlap(b, e.boxes[0]) >= 0.5 for b in boxes[e.sentence]] for e in real]
    assert content["metrics"]["best_possible"]["acc50"] == pytest.approx(sum(map(any, hits)) / len(real))
    assert content["metrics"]["chance"]["acc50"] == pytest.approx(sum(sum(h) / len(h) for h in hits) / len(real))
    assert content["protocol"]["reading"] == "both"
    assert len(content["protocol"]["checkpoint_hash"]) == 2
    for pick, more in (("worst", ["--checkpoint", towers[0]]), ("random", [])):
        done = run(
            "tools/analysis/grounding_pictures.py",
            "--ann",
            tmp_path / "real.jsonl",
            "--pred",
            tmp_path / "found.hard.jsonl",
            "--images",
            folder / "images",
            "--pick",
            pick,
            "--count",
            "3",
            "--out",
            tmp_path / f"{pick}.png",
            *more,
        )
        assert f"3 of 14 sentences ({pick})" in done.stdout
        assert Image.open(tmp_path / f"{pick}.png").width > 900
    for mode in ("hard", "off"):
        run(
            "tools/evaluate.py",
            "refcoco",
            "--ann",
            tmp_path / "real.jsonl",
            "--pred",
            tmp_path / f"found.{mode}.jsonl",
            "--out",
            tmp_path / "m.json",
        )
        assert json.loads((tmp_path / "m.json").read_text())["metrics"] == content["metrics"][mode]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("picture")
    Image.new("RGB", (90, 60), (200, 30, 30)).save(folder / "a.png")
    box = ((10.0, 10, 40, 40),)
    write_expressions(folder / "e.jsonl", [Expression(1, 1, "a.png", "the red cup left of it", box, 90, 60)])
    write_expressions(
        folder / "many.jsonl", [Expression(n, 1, "a.png", f"quickly {n}", box, 90, 60) for n in range(1000)]
    )
    write_expressions(folder / "empty.jsonl", [Expression(1, 1, "a.png", " ", box, 90, 60)])
    write_expressions(folder / "long.jsonl", [Expression(1, 1, "a.png", "a red cup " * 90, box, 90, 60)])
    write_expressions(folder / "lost.jsonl", [Expression(1, 1, "b.png", "cup", box, 90, 60)])
    write_expressions(
        folder / "two.jsonl",
        [Expression(1, 1, "a.png", "cup", box, 90, 60), Expression(2, 1, "a.png", "x", (), 90, 60)],
    )
    (folder / "both.jsonl").write_text(
        "".join(json.dumps({"id": n, "boxes": [[0, 0, 9, 9]], "scores": [1]}) + "\n" for n in (1, 2))
    )
    (folder / "outside.jsonl").write_text(
        json.dumps({"id": 1, "boxes": [[500, 500, 600, 600], [-50, -9, 5, 5]], "scores": [1, 0]})
    )
    (folder / "none.jsonl").write_text(json.dumps({"id": 1, "boxes": [], "scores": []}))
    (folder / "xywh.jsonl").write_text(json.dumps({"id": 1, "boxes": [[50, 40, 20, 10]], "scores": [1]}))
    (folder / "foreign.jsonl").write_text(json.dumps({"id": 7, "boxes": [[0, 0, 2, 2]], "scores": [1]}))
    return folder


BAD = [
    ("empty.jsonl", [], "sentence is empty"),
    ("long.jsonl", [], "limit"),
    ("lost.jsonl", [], "No image at"),
    ("absent.jsonl", [], "No expression file"),
    ("e.jsonl", ["--proposals", "xywh.jsonl"], "--box-format xywh"),
    ("e.jsonl", ["--proposals", "foreign.jsonl"], "another split or data set"),
    ("e.jsonl", ["--proposals", "absent.json"], "No proposals at"),
    ("e.jsonl", ["--proposals", "detector"], "needs --config and --checkpoint"),
    ("e.jsonl", ["--detector-weight", "1"], "proposals with scores"),
    ("e.jsonl", ["--detector-weight", "1", "--answers", "all"], "does not apply to --answers all"),
    ("e.jsonl", ["--views", "mask"], "proposals with masks"),
    ("e.jsonl", ["--reading", "both", "--parser", "en_core_web_absent"], "--parser rules"),
    ("e.jsonl", ["--split", "val"], "no split"),
]


@pytest.mark.parametrize(("file", "more", "message"), BAD, ids=[m for _, _, m in BAD])
def test_bad_input_is_told_without_a_traceback(picture, towers, tmp_path, file, more, message):
    more = [picture / m if m.endswith(".jsonl") else m for m in more]
    done = run(
        "tools/ground.py",
        picture / file,
        "--images",
        picture,
        "--checkpoint",
        towers[0],
        *more,
        "--out",
        tmp_path / "found.jsonl",
        check=False,
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("file", "proposals", "count"),
    [
        ("two.jsonl", "both.jsonl", 1),
        ("e.jsonl", "outside.jsonl", 2),
        ("e.jsonl", "none.jsonl", 0),
        ("many.jsonl", "ground-truth", 1),
    ],
)
def test_odd_input_has_an_answer(picture, towers, tmp_path, file, proposals, count):
    source = picture / proposals if proposals.endswith("jsonl") else proposals
    run(
        "tools/ground.py",
        picture / file,
        "--images",
        picture,
        "--checkpoint",
        towers[0],
        "--proposals",
        source,
        "--views",
        "crop",
        "dense",
        "--reading",
        "chunks",
        "--out",
        tmp_path / "found.jsonl",
    )
    lines = (tmp_path / "found.jsonl").read_text().splitlines()
    assert len(lines) == (1000 if file == "many.jsonl" else 1)
    assert all(len(json.loads(line)["boxes"]) == count for line in lines)


def test_the_benchmark_tells_what_a_sentence_costs(tmp_path):
    done = run(
        "tools/analysis/benchmark.py",
        "ground",
        "--arch",
        "SmartCLIP-tiny",
        "--sizes",
        "64",
        "--sentences",
        "1",
        "3",
        "--proposals",
        "4",
        "--rounds",
        "1",
        "--out",
        tmp_path / "b.json",
    )
    found = json.loads((tmp_path / "b.json").read_text())["metrics"]
    assert set(found["zero_shot"]) == {"4 boxes, expression", "4 boxes, both"}
    assert found["trained_head"]["trained_parameters"] > 1e6
    assert "per sentence" in done.stdout
