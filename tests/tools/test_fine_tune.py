"""Fine-tuning with one command: real VOC photographs on a tiny detector, with metrics before and after."""

from __future__ import annotations

import json
import shutil

import pytest

from smartclip_det.apis.fine_tuning import FineTuneOptions, base_config, write_config
from smartclip_det.engine.config import load_config
from smartclip_det.utils.steps import Step
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
    common = [
        base / "config.py",
        base / "run/epoch_1.pth",
        "--ann",
        root / "own.json",
        "--images",
        images,
        "--val-ann",
        root / "own.json",
        "--out",
        root / "out",
        "--epochs",
        "1",
        "--batch-size",
        "2",
    ]
    done = run("tools/fine_tune.py", *common, "--blend", "0.5")
    report = json.loads((root / "out/report.json").read_text())
    assert set(report["metrics"]) == {"own", "old"}
    for what, key in (("own", "bbox_mAP"), ("old", "novel_ap50")):
        assert set(report["metrics"][what]) == {"before", "after", "blended"}
        assert all(key in m for m in report["metrics"][what].values())
    hashes = report["protocol"]["checkpoints"]
    assert len(set(hashes.values())) == 3
    assert "# Fine-tuning: your classes and the old ones" in done.stdout
    assert "aeroplane" in (root / "out/report.md").read_text()


def test_the_written_config_needs_no_overrides_and_changes_with_its_inputs(own, tmp_path):
    root, images = own
    weights, boxes = tmp_path / "w.pth", tmp_path / "boxes.json"
    weights.write_bytes(b"1")
    shutil.copy(root / "own.json", boxes)
    options = FineTuneOptions(
        "toy/open-vocab-rcnn_smartclip-toy_toy",
        weights,
        boxes,
        images,
        root / "own.json",
        out=tmp_path / "out",
        cfg_options={"towers.checkpoint": "t.pth", "train_dataloader.batch_size": 3},
    )

    def written():
        path = write_config(options, base_config(options))
        return load_config(path), Step("train", [str(path)]).config_hash()

    config, first = written()
    assert config.model.backbone.towers.checkpoint == config.custom_hooks[0].towers.checkpoint == "t.pth"
    assert config.train_dataloader.batch_size == 3
    assert config.train_dataloader.dataset.ann_file == str(boxes)
    assert written()[1] == first
    weights.write_bytes(b"2")
    second = written()[1]
    boxes.write_text(boxes.read_text() + "\n")
    assert len({first, second, written()[1]}) == 3


def test_what_would_fail_later_fails_first(small, own, tmp_path):  # noqa: F811
    base, _, _ = small
    root, images = own
    start = [
        "tools/fine_tune.py",
        base / "config.py",
        base / "run/epoch_1.pth",
        "--ann",
        root / "own.json",
        "--val-ann",
        root / "own.json",
        "--out",
        tmp_path / "out",
    ]
    for options, said in (
        (["--images", tmp_path], "8 of 8 images are not in"),
        (["--images", images, "--blend", "2"], "--blend in [0, 1)"),
    ):
        done = run(*start, *options, check=False)
        assert done.returncode == 2
        assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_folders_of_data_sets_are_tested_with_their_own_names(small, own, tmp_path):  # noqa: F811
    base, _, _ = small
    root, images = own
    boxes = json.loads((root / "own.json").read_text())
    for number, folder in enumerate(("pets", "vehicles")):
        place = tmp_path / "sets" / folder / "valid"
        place.mkdir(parents=True)
        part = {**boxes, "images": boxes["images"][number::2]}
        kept = {i["id"] for i in part["images"]}
        part["annotations"] = [a for a in boxes["annotations"] if a["image_id"] in kept]
        (place / "annotations_without_background.json").write_text(json.dumps(part))
        for image in part["images"]:
            shutil.copy(images / image["file_name"], place)
    (tmp_path / "texts.json").write_text(json.dumps({"pets": {"aeroplane": "airplane"}}))
    start = [
        "tools/analysis/multi_dataset.py",
        base / "config.py",
        base / "run/epoch_1.pth",
        "--root",
        tmp_path / "sets",
    ]
    done = run(
        *start,
        "--out",
        tmp_path / "out",
        "--prompt-names",
        tmp_path / "texts.json",
        "--cfg-options",
        "test_dataloader.dataset.vocabulary=annotations",
        "test_dataloader.dataset.seen=None",
        "test_dataloader.dataset.annotated_only=False",
        "test_evaluator.protocol=coco",
        "test_evaluator.images=all",
    )
    written = json.loads((tmp_path / "out/folders.json").read_text())
    assert set(written["by_folder"]) == {"pets", "vehicles"}
    means = [m["bbox_mAP"] for m in written["by_folder"].values()]
    assert written["metrics"]["bbox_mAP"] == pytest.approx(sum(means) / 2)
    stamp = json.loads((tmp_path / "out/pets.metrics.json").read_text())["protocol"]
    assert stamp["texts"]["prompt_names"] == {"aeroplane": "airplane"}
    assert "| mean |" in done.stdout
    (tmp_path / "texts.json").write_text(json.dumps({"pet": {}}))
    wrong = run(*start, "--prompt-names", tmp_path / "texts.json", check=False)
    assert wrong.returncode == 2
    assert "'pet' (nearest: pets)" in wrong.stderr
