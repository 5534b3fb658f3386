"""Alignment through the tools on a tiny toy world: train, resume, test, probe, ground."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
from mmengine.logging import MessageHub

from smartclip_det.core.errors import UserError
from smartclip_det.datasets.toy_world import ToyWorld, WorldConfig, write_world
from smartclip_det.engine.region_probe_hook import RegionProbeHook
from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.formats.class_splits import ov_coco_split
from smartclip_det.models.regions import RegionEncoder
from smartclip_det.models.towers import SmartCLIP
from smartclip_det.models.vocabulary import build_bank
from smartclip_det.probing.region_probe import probe_accuracy, probe_regions
from tests.processes import run_processes
from tests.tools.test_runs import run

pytestmark = pytest.mark.slow
CONFIG = "configs/toy/smartclip-align_two-stage_toy.py"


@pytest.fixture(scope="module")
def aligned(tmp_path_factory):
    root = tmp_path_factory.mktemp("aligned")
    write_world(ToyWorld(WorldConfig(train=24, val=10, test=2)), root / "toy", progress=False)
    options = [
        f"data_root={root}/toy/",
        "train_dataloader.batch_size=8",
        "train_cfg.max_epochs=1",
        "default_hooks.logger.interval=1",
        f"val_evaluator.metrics_file={root}/metrics.json",
    ]
    done = run("tools/train.py", CONFIG, "--work-dir", root / "run", "--cfg-options", *options)
    return root, options, done


def test_a_run_writes_stamped_metrics_and_says_how_to_test(aligned):
    root, _, done = aligned
    found = json.loads((root / "metrics.json").read_text())
    assert found["protocol"]["name"] == "alignment"
    assert found["protocol"]["scoring"] == "hard"
    for key in ("t2i_r1_long", "i2t_r5_short_off", "t2i_r1_partial_hard", "map_shape", "map_colour_shape_off"):
        assert 0 <= found["metrics"][key] <= 1
    assert f"smartclip-det test {CONFIG} {root}/run/epoch_1.pth" in done.stdout + done.stderr


def test_boxes_are_probed_before_training_and_in_validation(aligned):
    root, _, done = aligned
    log = done.stdout + done.stderr
    assert log.count("Region probe before training") == 1
    told = json.loads(next((root / "run").glob("*/vis_data/scalars.json")).read_text().splitlines()[-1])
    towers = SmartCLIP.from_checkpoint(root / "run/epoch_1.pth").eval()
    truth = load_ground_truth(root / "toy/annotations/instances_val.json")
    base, novel, _ = ov_coco_split(root / "toy/annotations/split.json")
    bank = build_bank(towers, [*base, *novel], templates=["{article} {}"], progress=False)
    regions = probe_regions(
        RegionEncoder(towers, dense_size=128),
        truth,
        root / "toy/images/val",
        bank.names,
        views=["dense"],
        progress=False,
    )
    expected = probe_accuracy(regions, bank, {"base": base, "novel": novel}, ["hard", "off"])
    for group in ("base", "novel", "all"):
        for mode in ("hard", "off"):
            assert told[f"region_{group}_dense_{mode}"] == expected[group]["dense_value"][mode]


def probe_rank(rank, world, root, images):
    hook = RegionProbeHook(
        "annotations/instances_val.json",
        images,
        data_root=f"{root}/toy",
        max_images=4,
        templates=["{article} {}"],
        split_file="annotations/split.json",
    )
    runner = SimpleNamespace(model=SimpleNamespace(towers=SmartCLIP.from_arch("SmartCLIP-tiny")))
    try:
        return hook.measure(runner)
    except UserError as error:
        return {"error": str(error)}


@pytest.mark.dist
def test_one_process_probes_for_all_and_its_error_is_everyones(aligned, tmp_path):
    root, _, _ = aligned
    one, two = run_processes(probe_rank, 2, tmp_path, str(root), "images/val")
    assert one == two == probe_rank(0, 1, root, "images/val")
    assert {"region_base_dense_hard", "region_all_dense_off"} < set(one)
    (tmp_path / "again").mkdir()
    one, two = run_processes(probe_rank, 2, tmp_path / "again", str(root), "annotations")
    assert "No image at" in one["error"]
    assert one == two


def test_the_probe_warns_when_boxes_are_lost_and_asks_for_files_before_training(tmp_path, caplog):
    hook = RegionProbeHook("a.json", ".", data_root=str(tmp_path))
    runner = SimpleNamespace(iter=0, message_hub=MessageHub("probe"), logger=logging.getLogger("probe"))
    values = iter([0.5, 0.46, 0.44])
    hook.measure = lambda runner: {"region_all_dense_hard": 0.1, "region_all_dense_off": next(values)}
    with pytest.raises(UserError, match="annotations .* does not exist"):
        hook.before_train(runner)
    (tmp_path / "a.json").write_text("{}")
    hook.before_train(runner)
    for lost in (False, True):
        with caplog.at_level("WARNING"):
            caplog.clear()
            metrics = {}
            hook.after_val_epoch(runner, metrics)
        assert ("degrades the towers' region features" in caplog.text) == lost
        assert metrics["region_all_dense_hard"] == 0.1


def test_a_run_goes_on_and_a_test_gives_the_metrics_of_its_validation(aligned):
    root, options, _ = aligned
    more = [o for o in options if "max_epochs" not in o]
    done = run(
        "tools/train.py",
        CONFIG,
        "--work-dir",
        root / "run",
        "--resume",
        "--cfg-options",
        *more,
        "train_cfg.max_epochs=2",
        "default_hooks.checkpoint.max_keep_ckpts=2",
    )
    log = done.stdout + done.stderr
    assert "resumed epoch: 1" in log
    assert "Epoch(train) [1]" not in log
    after = json.loads((root / "metrics.json").read_text())["metrics"]
    run(
        "tools/test.py",
        CONFIG,
        root / "run/epoch_2.pth",
        "--work-dir",
        root / "test",
        "--cfg-options",
        options[0],
        f"test_evaluator.metrics_file={root}/tested.json",
    )
    tested = json.loads((root / "tested.json").read_text())["metrics"]
    assert tested == pytest.approx(after, abs=1e-9)


def test_its_checkpoint_is_a_towers_checkpoint_for_other_tools(aligned):
    root, _, _ = aligned
    toy = root / "toy"
    checkpoint = next((root / "run").glob("epoch_*.pth"))
    done = run(
        "tools/analysis/region_probe.py",
        "--checkpoint",
        checkpoint,
        "--ann",
        toy / "annotations/instances_val.json",
        "--images",
        toy / "images/val",
        "--split-file",
        toy / "annotations/split.json",
        "--templates",
        "{article} {}",
        "--views",
        "crop",
        "dense",
        "mask",
        "--out",
        root / "probe.json",
    )
    assert "novel dense_value" in done.stdout
    found = json.loads((root / "probe.json").read_text())
    assert set(found["metrics"]["novel"]) == {"crop", "dense_value", "mask_value"}
    assert len(found["protocol"]["checkpoint_hash"]) == 16
    ann = toy / "refs/finetune_toy_val.json"
    run(
        "tools/ground.py",
        ann,
        "--images",
        toy / "images",
        "--checkpoint",
        checkpoint,
        "--mask-modes",
        "hard",
        "off",
        "--instances",
        toy / "annotations/instances_val.json",
        "--reading",
        "chunks",
        "--out",
        root / "ground.jsonl",
    )
    metrics = json.loads((root / "ground.metrics.json").read_text())
    assert metrics["protocol"]["proposals"] == "ground-truth"
    assert metrics["counts"]["left_out"] > 0
    lines = [json.loads(line) for line in (root / "ground.hard.jsonl").read_text().splitlines()]
    assert len(lines) == metrics["counts"]["sentences"]
    assert all(row["scores"] == sorted(row["scores"], reverse=True) for row in lines)


def test_none_and_many_are_answered_by_a_calibrated_threshold(aligned):
    root, _, _ = aligned
    refs, toy = root / "toy/refs", root / "toy"
    checkpoint = next((root / "run").glob("epoch_*.pth"))
    common = [
        "--images",
        toy / "images",
        "--instances",
        refs / "instances.json",
        "--checkpoint",
        checkpoint,
        "--views",
        "circle",
        "dense",
        "--answers",
        "all",
        "--subtract",
        toy / "annotations/share_captions_train.json",
        "--subtract-count",
        "20",
    ]
    for split in ("train", "val"):
        run(
            "tools/ground.py",
            refs / f"finetune_toy_{split}.json",
            *common,
            "--limit",
            "60",
            "--out",
            root / f"{split}.jsonl",
        )
    stamp = json.loads((root / "val.metrics.json").read_text())["protocol"]
    assert (stamp["answers"], stamp["subtract"]["count"]) == ("all", 20)
    # An annotation file of the first 60 sentences of a split, which the predictions cover.
    for split in ("train", "val"):
        data = json.loads((refs / f"finetune_toy_{split}.json").read_text())
        data["images"] = data["images"][:60]
        kept = {i["id"] for i in data["images"]}
        data["annotations"] = [a for a in data["annotations"] if a["image_id"] in kept]
        (root / f"{split}_60.json").write_text(json.dumps(data))
    done = run(
        "tools/analysis/calibrate_grounding.py",
        "--ann",
        root / "train_60.json",
        "--pred",
        root / "train.jsonl",
        "--out",
        root / "threshold.json",
    )
    threshold = json.loads((root / "threshold.json").read_text())["metrics"]["score_threshold"]
    assert f"--threshold {threshold:.6f}" in done.stdout
    done = run(
        "tools/evaluate.py",
        "grefcoco",
        "--ann",
        root / "val_60.json",
        "--pred",
        root / "val.jsonl",
        "--score-threshold",
        threshold,
    )
    assert "n_acc" in done.stdout
    tests = [{"id": 1, "sentence": "a", "boxes": [], "split": "testA"}]
    (root / "testA.jsonl").write_text("\n".join(map(json.dumps, tests)))
    done = run(
        "tools/analysis/calibrate_grounding.py",
        "--ann",
        root / "testA.jsonl",
        "--pred",
        root / "val.jsonl",
        check=False,
    )
    assert done.returncode == 2
    assert "contains test sentences" in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["tools/ground.py", "absent.json", "--images", ".", "--checkpoint", "absent.pt"], "absent.json"),
        (
            ["tools/analysis/region_probe.py", "--checkpoint", "absent.pt", "--ann", "absent.json", "--images", "."],
            "absent",
        ),
        (["tools/analysis/toy_report.py", "--folder", "absent"], "run smartclip-det toy first"),
    ],
)
def test_missing_files_are_one_line(args, message):
    done = run(*args, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_grounding_head_is_trained_tested_and_scored_again(aligned):
    root, _, _ = aligned
    config, checkpoint = "configs/toy/referring_smartclip-toy_toy.py", next((root / "run").glob("epoch_*.pth"))
    options = ["--cfg-options", f"data_root={root}/toy/", f"towers.checkpoint={checkpoint}"]
    run(
        "tools/train.py",
        config,
        "--work-dir",
        root / "refexp",
        *options,
        "train_cfg.max_epochs=1",
        "train_cfg.val_interval=2",
        "train_dataloader.batch_size=8",
    )
    saved = root / "refexp/epoch_1.pth"
    assert saved.stat().st_size < 30e6
    run("tools/test.py", config, saved, "--work-dir", root / "refexp_test", "--out", root / "refexp.jsonl", *options)
    content = json.loads((root / "refexp.metrics.json").read_text())
    assert content["protocol"]["mask_mode"] == "hard"
    assert content["protocol"]["towers"]["checkpoint"] == str(checkpoint)
    run(
        "tools/evaluate.py",
        "grefcoco",
        "--ann",
        root / "toy/refs/finetune_toy_val.json",
        "--pred",
        root / "refexp.jsonl",
        "--score-threshold",
        "0.5",
        "--out",
        root / "again.json",
    )
    assert json.loads((root / "again.json").read_text())["metrics"] == content["metrics"]
    photo, asked = next((root / "toy/images/val").glob("*.jpg")), ["the red circle on the left", "a star"]
    demo = [
        "tools/demo.py",
        photo,
        "--text",
        *asked,
        "--config",
        config,
        "--checkpoint",
        saved,
        "--device",
        "cpu",
        "--out-dir",
        root / "demo",
    ]
    run(*demo, "--ground", "--heatmap", *options)
    told = json.loads((root / "demo" / f"{photo.stem}.json").read_text())
    assert [d["name"] for d in told["detections"]] == asked
    assert told["protocol"]["mask_mode"] == "hard"
    assert {p.name for p in (root / "demo").iterdir()} >= {f"{photo.stem}_ground.png", f"{photo.stem}_masks.png"}
    # Without --ground the same head detects names.
    run(*demo, *options)
    told = json.loads((root / "demo" / f"{photo.stem}.json").read_text())
    assert {d["name"] for d in told["detections"]} <= set(asked)
