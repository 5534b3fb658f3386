"""The steps of docs/own-photographs.md on real photographs: thresholds, labels, corrections, fine-tuning, report."""

from __future__ import annotations

import json
import shutil

import pytest

from smartclip_det.cli.dispatch import _start
from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.formats.thresholds import read_thresholds
from smartclip_det.formats.voc import voc_to_coco
from tests.detection.tiny import encoder, smoke_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def own(shared, tmp_path_factory):
    """Five photographs, one of them broken; true boxes; towers with meaningless names, so that scores do not matter."""
    root = tmp_path_factory.mktemp("own")
    source = shared / "voc_real_detections"
    (root / "photos").mkdir()
    (root / "xml").mkdir()
    for path in sorted((source / "JPEGImages").glob("*.jpg"))[:4]:
        shutil.copy(path, root / "photos")
        shutil.copy(source / "Annotations" / f"{path.stem}.xml", root / "xml")
    truth = voc_to_coco(root / "xml", root / "photos", "keep").data
    (root / "truth.json").write_text(json.dumps(truth))
    (root / "photos/broken.jpg").write_bytes(b"\xff\xd8 cut")
    (root / "names.txt").write_text("\n".join(c["name"] for c in truth["categories"]))
    encoder().save(root / "towers.safetensors")
    smoke_config().dump(root / "tiny.py")
    return root


def test_the_whole_way(own, capsys):
    towers = ["--encoder", str(own / "towers.safetensors"), "--boxes", str(own / "truth.json"), "--device", "cpu"]
    names = ["--vocabulary", str(own / "names.txt")]
    assert not _start(
        [
            "calibrate",
            "--ann",
            str(own / "truth.json"),
            "--images",
            str(own / "photos"),
            *towers,
            "--out",
            str(own / "thresholds.json"),
        ]
    )
    assert "on held-out images" in capsys.readouterr().out
    assert 0 < read_thresholds(own / "thresholds.json").default < 1

    given = [
        "label",
        str(own / "photos"),
        *names,
        *towers,
        "--thresholds",
        str(own / "thresholds.json"),
        "--out",
        str(own / "labels"),
    ]
    assert _start(given) == 2
    told = capsys.readouterr().out
    assert "4 images" in told
    assert "skipped 1: cannot identify image file (first: broken.jpg)" in told
    labelled = load_ground_truth(own / "labels/annotations.json")
    assert "review.html" in told
    answers = (own / "labels/answers.jsonl").read_bytes()
    assert _start([*given[:-2], "--format", "yolo", "--out", str(own / "labels")]) == 2
    assert (own / "labels/answers.jsonl").read_bytes() == answers

    # Manual corrections: the true boxes, on the images and classes of the labels.
    truth = json.loads((own / "truth.json").read_text())
    by_name = {i["file_name"]: i["id"] for i in labelled.data["images"]}
    file_of = {i["id"]: i["file_name"] for i in truth["images"]}
    corrected = {
        **labelled.data,
        "annotations": [{**a, "image_id": by_name[file_of[a["image_id"]]]} for a in truth["annotations"]],
    }
    assert labelled.data["categories"] == truth["categories"]
    (own / "corrected.json").write_text(json.dumps(corrected))
    assert not _start(
        [
            "fine-tune",
            str(own / "tiny.py"),
            "--encoder",
            str(own / "towers.safetensors"),
            "--ann",
            str(own / "corrected.json"),
            "--images",
            str(own / "photos"),
            "--val-ann",
            str(own / "corrected.json"),
            "--out",
            str(own / "tuned"),
            "--epochs",
            "1",
        ]
    )
    report = json.loads((own / "tuned/report.json").read_text())
    assert set(report["metrics"]) == {"own"}
    assert set(report["metrics"]["own"]) == {"after"}
    assert set(report["per_class"]["own"]["after"]) == {c["name"] for c in truth["categories"]}
    assert "there is no test before training" in (own / "tuned/report.md").read_text()


def test_what_does_not_go_together_is_told_first(own, tmp_path):
    from smartclip_det.core.errors import UserError

    common = [
        "--ann",
        str(own / "truth.json"),
        "--images",
        str(own / "photos"),
        "--val-ann",
        str(own / "truth.json"),
        "--out",
        str(tmp_path / "out"),
    ]
    towers = str(own / "towers.safetensors")
    for given, said in (
        ([], "--encoder NAME to start from towers alone"),
        ([str(own / "tiny.py")], "--encoder NAME"),
        ([str(own / "tiny.py"), "x.pth", "--encoder", towers], "drop CHECKPOINT"),
        (["--encoder", towers, "--blend", "0.5"], "and --blend"),
        (["--encoder", towers], "Pass CONFIG of a detector for these towers"),
    ):
        with pytest.raises(UserError, match=said):
            _start(["fine-tune", *given, *common])
    photo = next((own / "photos").glob("2*.jpg"))
    thresholds = tmp_path / "t.json"
    thresholds.write_text(json.dumps({"kind": "smartclip_det.thresholds/1", "default": 0.5, "thresholds": {}}))
    with pytest.raises(UserError, match="cannot be combined with --ground"):
        _start(["demo", str(photo), "--texts", "a", "--encoder", towers, "--thresholds", str(thresholds), "--ground"])


def test_a_vocabulary_of_a_hundred_thousand_lines(own, tmp_path):
    """It is quick to read, and invalid lines are reported before anything is encoded."""
    from smartclip_det.core.errors import UserError

    names = [f"thing {n}" for n in range(100_000)]
    (tmp_path / "names.txt").write_text("\n".join([*names, "thing 7"]))
    with pytest.raises(UserError, match="repeats names: thing 7"):
        _start(
            [
                "label",
                str(own / "photos"),
                "--vocabulary",
                str(tmp_path / "names.txt"),
                "--encoder",
                str(own / "towers.safetensors"),
                "--boxes",
                str(own / "truth.json"),
                "--out",
                str(tmp_path / "out"),
            ]
        )
    assert not (tmp_path / "out").exists()
