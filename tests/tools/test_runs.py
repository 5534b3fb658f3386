"""The tools on real photographs with a tiny tower: train, resume, test, score, two processes, mixed precision, demo."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPO
from tests.detection.tiny import smoke_config
from tests.processes import run_process

pytestmark = pytest.mark.slow


#: Tools without an MMEngine run are called in this process, because starting Python takes seconds.
INSIDE = (
    "demo",
    "ground",
    "evaluate",
    "data/cache_images",
    "analysis/region_probe",
    "verify_checkpoint",
    "classify",
    "data/convert_grounding",
    "analysis/masks",
    "analysis/calibrate_grounding",
    "retrieval",
    "rescore",
    "data/to_coco",
    "data/make_toy",
    "data/check_leakage",
    "analysis/vocabulary_report",
    "analysis/benchmark",
    "analysis/identifiability",
    "analysis/grounding_pictures",
)


def run(*args, check=True, cwd=REPO):
    """Run a tool with arguments: its exit code and both outputs, as of a separate process."""
    name = str(args[0]).removeprefix("tools/").removesuffix(".py")
    done = run_inside(*args) if name in INSIDE and cwd == REPO else run_process(*args, cwd=cwd)
    if check:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def run_inside(tool, *args):
    script, out, err, code = REPO / tool, io.StringIO(), io.StringIO(), 0
    argv, path = sys.argv, list(sys.path)
    sys.argv, sys.path[:] = [str(script), *map(str, args)], [str(script.parent), *path]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv, sys.path[:] = argv, path
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


@pytest.fixture(scope="module")
def small(shared, tmp_path_factory):
    """A separate config file on twelve real photographs, and a checkpoint after one epoch."""
    root = tmp_path_factory.mktemp("runs")
    source = shared / "coco_mini_train"
    data = json.loads((source / "instances_train2017.json").read_text())
    data["images"] = data["images"][:12]
    kept = {i["id"] for i in data["images"]}
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in kept]
    (root / "twelve.json").write_text(json.dumps(data))
    resize = {"type": "Resize", "scale": (128, 128), "keep_ratio": True}
    options = {
        "data_root": f"{source}/",
        **{f"{s}_dataloader.dataset.ann_file": str(root / "twelve.json") for s in ("train", "val", "test")},
        **{f"{s}_evaluator.ann_file": str(root / "twelve.json") for s in ("val", "test")},
        "train_dataloader.dataset.pipeline.2": resize,
        "val_dataloader.dataset.pipeline.1": resize,
        "test_dataloader.dataset.pipeline.1": resize,
        "model.data_preprocessor.pad_size_divisor": 128,
        "model.train_cfg.rpn_proposal.max_per_img": 50,
        "model.test_cfg.rpn.max_per_img": 50,
        "model.test_cfg.rcnn.score_thr": 0.0,
        "model.policy.mask_mode": "hard",
        "train_cfg.max_epochs": 1,
        "train_cfg.val_interval": 1,
        "default_hooks.logger.interval": 1,
    }
    config = smoke_config(source, **{k: v for k, v in options.items() if k != "data_root"})
    config.data_root = f"{source}/"
    config.dump(root / "config.py")
    done = run("tools/train.py", root / "config.py", "--work-dir", root / "run")
    return root, source, done


def test_training_opens_and_closes_with_what_one_needs(small):
    root, _, done = small
    log = done.stdout + done.stderr
    for line in (
        "smartclip_det run",
        "220,800 frozen",
        "work_dir",
        "versions",
        "Vocabulary: 65 classes (48 seen)",
        "eta:",
        "novel_ap50",
        f"smartclip-det test {root}/config.py {root}/run/epoch_1.pth",
    ):
        assert line in log, line


def test_resume_goes_on_where_it_stopped(small):
    root, _, _ = small
    done = run(
        "tools/train.py",
        root / "config.py",
        "--work-dir",
        root / "run",
        "--resume",
        "--cfg-options",
        "train_cfg.max_epochs=2",
        "default_hooks.checkpoint.max_keep_ckpts=5",
    )
    log = done.stdout + done.stderr
    assert "resumed epoch: 1" in log
    assert "Epoch(train) [2]" in log
    assert "Epoch(train) [1]" not in log
    assert "weights_only=False" not in log


def test_saved_predictions_score_to_the_same_digits_on_one_and_two_processes(small):
    root, _, _ = small
    ann, metrics = root / "twelve.json", {}
    for name, tool in (
        ("one.json", "tools/test.py"),
        ("two.json", "tools/dist_test.sh"),
        ("columns.safetensors", "tools/test.py"),
    ):
        count = ["2"] if tool.endswith(".sh") else []
        run(
            tool, root / "config.py", root / "run/epoch_1.pth", *count, "--work-dir", root / "run", "--out", root / name
        )
        written = json.loads((root / name).with_suffix(".metrics.json").read_text())
        metrics[name] = written["metrics"]
        assert written["protocol"]["checkpoint_sha256"]
        assert written["protocol"]["policy"]["fusion"] == "f_vit"
        assert written["protocol"]["policy"]["text_norm"] == "full"
        assert written["protocol"]["texts"]["templates"] == "photo"
        assert written["protocol"]["images"] == "annotated"
        run(
            "tools/evaluate.py",
            "ov-coco",
            "--images",
            "annotated",
            "--ann",
            ann,
            "--pred",
            root / name,
            "--out",
            root / f"{name}.scored.json",
        )
        assert json.loads((root / f"{name}.scored.json").read_text())["metrics"] == metrics[name]
    assert metrics["one.json"] == metrics["columns.safetensors"]
    assert metrics["two.json"] == pytest.approx(metrics["one.json"], abs=1e-9)
    results = json.loads((root / "one.json").read_text())
    assert len({r["image_id"] for r in results}) == 12


def test_two_processes_train_with_frozen_parts(small):
    root, _, _ = small
    done = run(
        "tools/dist_train.sh",
        root / "config.py",
        2,
        "--work-dir",
        root / "dist",
        "--cfg-options",
        "find_unused_parameters=True",
    )  # the tiny pyramid skips its first tap
    log = done.stdout + done.stderr
    assert "Epoch(val) [1]" in log
    assert (root / "dist/epoch_1.pth").is_file()


#: Runs a tool with little more memory than its libraries need.
SHORT_OF_MEMORY = """
import resource, runpy, sys
import torch, mmdet, smartclip_det.register_detection
sys.argv = sys.argv[1:]
sys.path.insert(0, {tools!r})
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 10**9, resource.RLIM_INFINITY))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_memory_that_runs_out_is_told_with_what_needs_less(small, tmp_path):
    root, source, _ = small
    (tmp_path / "short.py").write_text(SHORT_OF_MEMORY.format(tools=str(REPO / "tools")))
    demo = [
        tmp_path / "short.py",
        "tools/demo.py",
        source / "images/000000037666.jpg",
        "--text",
        "cat",
        "--config",
        root / "config.py",
        "--checkpoint",
        root / "run/epoch_1.pth",
        "--out-dir",
        tmp_path,
        "--cfg-options",
    ]
    assert run_process(*demo, "test_dataloader.dataset.pipeline.1.scale=(128,128)").returncode == 0
    done = run_process(*demo, "test_dataloader.dataset.pipeline.1.scale=(6000,6000)")
    assert done.returncode == 2, done.stderr[-2000:]
    assert "error: out of memory" in done.stderr
    assert "pipeline.1.scale" in done.stderr
    assert "Traceback" not in done.stderr


def test_amp_on_a_cpu_is_bfloat16(small):
    root, _, _ = small
    done = run("tools/train.py", root / "config.py", "--work-dir", root / "amp", "--amp")
    text = (root / "amp" / "config.py").read_text()
    assert "BFloat16OptimWrapper" in text
    assert "nan" not in (done.stdout + done.stderr).split("smartclip_det run")[1].lower().replace("nano", "")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["tools/train.py", "absent.py"], "No config at absent.py"),
        (["tools/test.py", "CONFIG", "absent.pth"], "No checkpoint at absent.pth"),
        (["tools/train.py", "CONFIG", "--resume", "absent.pth"], "No checkpoint at absent.pth to resume from"),
        (
            ["tools/train.py", "CONFIG", "--auto-scale-lr", "--cfg-options", "auto_scale_lr=None"],
            "--auto-scale-lr needs",
        ),
        (["tools/train.py", "CONFIG", "--launcher", "pytorch"], "needs torchrun"),
        (["tools/demo.py", "absent.jpg", "--text", "cat", "--config", "CONFIG"], "absent.jpg does not exist"),
        (["tools/demo.py", "absent.jpg", "--config", "CONFIG"], "No phrases given"),
    ],
)
def test_bad_calls_are_one_line_and_exit_code_2(small, args, message):
    root, _, _ = small
    done = run(*[str(root / "config.py") if a == "CONFIG" else a for a in args], check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkpoint_with_pickled_code_is_refused_by_the_tools(small, tmp_path):
    import torch

    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    torch.save({"state_dict": {}, "x": Evil()}, tmp_path / "evil.pth")
    root, _, _ = small
    done = run("tools/test.py", root / "config.py", tmp_path / "evil.pth", "--work-dir", tmp_path, check=False)
    assert done.returncode == 2
    assert "could run code" in done.stderr
    assert not marker.exists()


def test_demo_overwrites_nothing(small, tmp_path):
    import shutil

    root, source, _ = small
    photo = source / "images/000000037666.jpg"
    (tmp_path / "a").mkdir()
    shutil.copy(photo, tmp_path / "a/x.jpg")
    Image.open(photo).save(tmp_path / "x.png")
    call = [
        "--text",
        "cat",
        "--config",
        root / "config.py",
        "--checkpoint",
        root / "run/epoch_1.pth",
        "--out-dir",
        tmp_path,
    ]
    done = run("tools/demo.py", tmp_path / "a/x.jpg", tmp_path / "x.png", *call, check=False)
    assert done.returncode == 2
    assert "2 images are named x" in done.stderr
    done = run("tools/demo.py", tmp_path / "x.png", *call, check=False)
    assert "would overwrite it" in done.stderr


def test_demo_writes_picture_json_maps_and_masks(small, tmp_path):
    root, source, _ = small
    photo = source / "images/000000037666.jpg"
    done = run(
        "tools/demo.py",
        photo,
        "--text",
        "a red mug",
        "cat",
        "person",
        "--config",
        root / "config.py",
        "--checkpoint",
        root / "run/epoch_1.pth",
        "--out-dir",
        tmp_path,
        "--heatmap",
        "--threshold",
        "0.99999",
    )
    assert "no detection reaches --threshold 0.99999; best:" in done.stdout
    content = json.loads((tmp_path / "000000037666.json").read_text())
    assert content["texts"] == ["a red mug", "cat", "person"]
    assert content["protocol"]["policy"]["activation"] == "sigmoid"
    for name in ("000000037666.png", "000000037666_map0.png", "000000037666_map2.png", "000000037666_masks.png"):
        assert Image.open(tmp_path / name).size[0] > 100
    done = run(
        "tools/demo.py",
        source / "images",
        "--text",
        "the dog on the left",
        "--ground",
        "--top-k",
        "2",
        "--config",
        root / "config.py",
        "--checkpoint",
        root / "run/epoch_1.pth",
        "--out-dir",
        tmp_path / "all",
        "--cfg-options",
        "model.policy.mask_mode=off",
    )
    assert len(list((tmp_path / "all").glob("*.json"))) == len(list((tmp_path / "all").glob("*_ground.png"))) == 80
    first = json.loads(next((tmp_path / "all").glob("*.json")).read_text())
    assert len(first["detections"]) == 2


class TestPredictor:
    @pytest.fixture(scope="class")
    def predictor(self, small):
        from smartclip_det.apis import Predictor

        root, _, _ = small
        return Predictor.from_config(root / "config.py", root / "run/epoch_1.pth", use_cache=False)

    def test_queries_are_cheap_and_scores_independent_of_other_phrases(self, predictor, small, monkeypatch):
        _, source, _ = small
        photo = source / "images/000000037666.jpg"
        predictor.set_image(photo)
        monkeypatch.setattr(predictor.detector.backbone, "features", None)  # another encoding would fail
        both = predictor.detect(["cat", "red mug"], max_detections=400)
        alone = predictor.detect(["cat"], max_detections=400)
        cats = both.scores[both.labels == 0]
        assert np.allclose(np.sort(cats)[::-1][:50], alone.scores[:50], atol=1e-6)
        assert ((both.scores >= 0) & (both.scores <= 1)).all()
        alone = predictor.ground("the red mug on the left", top_k=3)
        assert len(alone) == 3
        several = predictor.ground(["a dog", "the red mug on the left", "a dog"], top_k=3)
        assert np.allclose(several[1].scores, alone.scores, atol=1e-6)
        assert np.array_equal(several[0].boxes, several[2].boxes)
        assert len(predictor.ground("the red mug on the left", threshold=1.0)) == 0
        assert predictor.explain("a red mug").similarity.shape[1] == 16  # 128 pixels in patches of 8

    def test_boxes_are_in_original_pixels_and_arrays_equal_files(self, predictor, small):
        from smartclip_det.apis.inputs import load_image

        _, source, _ = small
        photo = source / "images/000000037666.jpg"
        predictor.set_image(photo)
        from_file = predictor.detect(["cat"])
        predictor.set_image(load_image(photo))
        from_array = predictor.detect(["cat"])
        width, height = Image.open(photo).size
        assert (from_file.boxes <= np.array([width, height] * 2) + 0.01).all()
        assert from_file.boxes.max() > 140  # larger than the network's own input
        assert np.array_equal(from_file.boxes, from_array.boxes)

    def test_vocabulary_in_force_is_used_and_equals_given_texts(self, predictor, small):
        _, source, _ = small
        predictor.set_vocabulary(["bear", "tv"])
        first = next(predictor.detect_images([source / "images/000000037666.jpg"], ["cat", "dog"])).scores
        assert predictor.vocabulary == ("bear", "tv")
        predictor.set_image(source / "images/000000037666.jpg")
        assert np.allclose(first, predictor.detect(["cat", "dog"]).scores)
        predictor.set_vocabulary(["cat", "dog"])
        assert np.allclose(first, predictor.detect().scores)

    def test_errors_name_the_missing_call(self, small, tmp_path):
        from smartclip_det.apis import Predictor
        from smartclip_det.apis.inputs import load_image
        from smartclip_det.core.errors import UserError

        root, _, _ = small
        fresh = Predictor.from_config(root / "config.py", root / "run/epoch_1.pth", use_cache=False)
        with pytest.raises(UserError, match=r"Call set_image\(image\) before"):
            fresh.detect(["cat"])
        with pytest.raises(UserError, match="no vocabulary set"):
            fresh.detect()
        with pytest.raises(UserError, match="expression is empty"):
            fresh.ground(" ")
        with pytest.raises(UserError, match="No image at"):
            load_image(tmp_path / "x.jpg")
        (tmp_path / "x.jpg").write_text("no image")
        with pytest.raises(UserError, match="cannot be read"):
            load_image(tmp_path / "x.jpg")
        with pytest.raises(UserError, match=r"\[H, W, 3\] uint8"):
            load_image(np.zeros((4, 4)))
        with pytest.raises(UserError, match="No checkpoint at"):
            Predictor.from_config(root / "config.py", "absent.pth")
        with pytest.raises(UserError, match="must build OpenVocabRCNN or OpenVocabOWL"):
            Predictor.from_config(REPO / "configs/stock_detectors/retinanet_smartclip-b16_fpn_1x_coco.py")
