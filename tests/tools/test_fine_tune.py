"""Own data in one command: real VOC photographs onto a tiny detector, reported before and after."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.tools.test_runs import run, small  # noqa: F401

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def own(shared, tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    source = shared / "voc_real_detections"
    photographs = sorted((source / "JPEGImages").glob("*.jpg"))[:8]
    (root / "xml").mkdir()
    for path in photographs:
        shutil.copy(source / "Annotations" / f"{path.stem}.xml", root / "xml")
    run("tools/data/to_coco.py", "voc", "--xml", root / "xml", "--out", root / "own.json")
    return root, source / "JPEGImages"


def test_fine_tuning_reports_own_and_old_classes(small, own):  # noqa: F811
    base, _, _ = small
    root, images = own
    common = [base / "config.py", base / "run/epoch_1.pth", "--ann", root / "own.json", "--images", images, "--val-ann",
              root / "own.json", "--out", root / "out", "--epochs", "1", "--batch-size", "2"]  # fmt: skip
    done = run("tools/fine_tune.py", *common, "--blend", "0.5")
    report = json.loads((root / "out/report.json").read_text())
    assert set(report["metrics"]) == {"own", "old"}
    for what, key in (("own", "bbox_mAP"), ("old", "novel_ap50")):
        assert set(report["metrics"][what]) == {"before", "after", "blended"}
        assert all(key in m for m in report["metrics"][what].values())
    hashes = report["protocol"]["checkpoints"]
    assert len(set(hashes.values())) == 3
    assert "# What was learned, and what was kept" in done.stdout
    assert "aeroplane" in (root / "out/report.md").read_text()


def test_what_would_fail_later_fails_first(small, own, tmp_path):  # noqa: F811
    base, _, _ = small
    root, images = own
    start = ["tools/fine_tune.py", base / "config.py", base / "run/epoch_1.pth", "--ann", root / "own.json",
             "--val-ann", root / "own.json", "--out", tmp_path / "out"]  # fmt: skip
    for options, said in (
        (["--images", tmp_path], "8 of 8 images are not in"),
        (["--images", images, "--blend", "2"], "--blend in [0, 1)"),
    ):
        done = run(*start, *options, check=False)
        assert done.returncode == 2
        assert said in done.stderr
    assert not (tmp_path / "out").exists()
