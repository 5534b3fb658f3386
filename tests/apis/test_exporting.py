"""Exported files against PyTorch: towers, both detectors, masks, any number of names, metadata, and the example."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from smartclip_det.apis.exporting.checking import Comparison, compare_detections, openvino_runner
from smartclip_det.apis.exporting.checking import onnx_runner as runner_of
from smartclip_det.apis.exporting.exporting import Detector, ExportOptions, Tower, export_onnx
from smartclip_det.apis.exporting.graph_bank import bank_rows, check_input_policy
from smartclip_det.apis.exporting.inputs import check_size
from smartclip_det.apis.exporting.onnx_file import open_session, write_onnx
from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.similarity import masked_cosine
from smartclip_det.studies.benchmarks.measuring import generated_bank
from tests.conftest import REPO

ABSENT = [m for m in ("onnx", "onnxscript", "onnxruntime", "openvino") if find_spec(m) is None]
pytestmark = pytest.mark.skipif(bool(ABSENT), reason=f'{ABSENT} absent: pip install "smartclip_det[export,openvino]"')

NAMES = ("circle", "red square", "star", "a small heart", "cross")
OWL = "configs/toy/open-vocab-owl_smartclip-toy_toy.py"
RCNN = "configs/toy/open-vocab-rcnn_smartclip-toy_toy.py"


def trained(config, path):
    """Weights that give distinct scores: zeros and tiny values would tie all boxes."""
    from smartclip_det.apis.detector_loading import build_detector

    _, detector = build_detector(str(REPO / config), None)
    g = torch.Generator().manual_seed(1)
    for name, p in detector.named_parameters():
        if not name.startswith("backbone") and p.ndim > 1:
            p.data = torch.randn(p.shape, generator=g) * 0.05
    torch.save({"state_dict": detector.state_dict()}, path)
    return str(path)


@pytest.fixture(scope="module")
def pictures():
    """Noise: in flat areas of toy scenes an untrained RPN has tied scores, whose order is arbitrary."""
    rng = np.random.default_rng(0)
    # Wide, tall, and larger than the input.
    sizes = ((60, 28), (30, 64), (128, 128))
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@pytest.fixture(scope="module")
def picture_folder(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for n, picture in enumerate(pictures):
        picture.save(folder / f"{n}.png")
    return folder


@pytest.fixture(scope="module")
def two_stage(tmp_path_factory, picture_folder):
    """The two-stage detector with the bank as input: the written file, and the same model in PyTorch."""
    folder = tmp_path_factory.mktemp("two_stage")
    options = ExportOptions(
        out=folder / "model.onnx",
        config=str(REPO / RCNN),
        checkpoint=trained(RCNN, folder / "weights.pth"),
        texts=NAMES,
        check=[picture_folder],
        bank_input=True,
    )
    return export_onnx(options), Detector(options)


@pytest.fixture(scope="module")
def one_stage(tmp_path_factory, picture_folder):
    """The one-stage detector with its names folded in."""
    folder = tmp_path_factory.mktemp("one_stage")
    options = ExportOptions(
        out=folder / "model.onnx",
        config=str(REPO / OWL),
        checkpoint=trained(OWL, folder / "weights.pth"),
        texts=NAMES,
        check=[picture_folder],
        openvino=True,
    )
    return export_onnx(options), Detector(options)


def compared(exported, subject, pictures):
    told = Comparison("onnxruntime", 1e-4)
    run = runner_of(open_session(exported.path, 1))
    for picture in pictures:
        subject.compare(picture, [(told, run)])
    return told


@pytest.mark.parametrize("count", [1, 5, 300])
def test_any_number_of_names_fits_one_two_stage_file(two_stage, pictures, count):
    exported, subject = two_stage
    own = subject.bank
    bank = own
    if count != 5:
        # As in a file with the bank as input: no class was seen in training.
        unseen = torch.zeros(count, dtype=torch.bool)
        bank = dataclasses.replace(generated_bank(count, own.dim), background=own.background, seen=unseen)
    subject.bank = bank
    try:
        told = compared(exported, subject, pictures)
    finally:
        subject.bank = own
    assert told.passed, told.lines()
    assert told.detections > 10
    assert told.largest["boxes"] < 1e-4
    assert told.largest["scores"] < 1e-4


def test_a_wrong_mask_is_seen(two_stage, one_stage, pictures):
    """Each text with its neighbour's mask: as input of the two-stage file, and folded into the one-stage file."""
    for exported, subject in (two_stage, one_stage):
        assert exported.comparisons[0].passed, exported.comparisons[0].lines()
        assert compared(exported, subject, pictures).passed
        own = subject.bank
        shuffled = dataclasses.replace(own, masks=own.masks.roll(1, 0), mask_probs=None)
        assert not torch.equal(shuffled.masks, own.masks)
        run = runner_of(open_session(exported.path, 1))
        told = Comparison("onnxruntime", 1e-4)
        wrong = {"embeds": own.embeds.numpy(), "masks": shuffled.masks.numpy()}
        if subject.options.bank_input:
            subject.compare(pictures[0], [(told, lambda feed, run=run, wrong=wrong: run({**feed, **wrong}))])
        else:
            subject.bank = shuffled
            try:
                subject.compare(pictures[0], [(told, run)])
            finally:
                subject.bank = own
        assert not told.passed


def test_a_batch_of_the_one_stage_file_answers_as_each_picture_alone(one_stage, pictures):
    exported, subject = one_stage
    run = runner_of(open_session(exported.path, 1))
    alone = [subject.inputs(p) for p in pictures]
    together = run({k: np.concatenate([a[k] for a in alone]) for k in alone[0]})
    for n, feed in enumerate(alone):
        one = run(feed)
        assert np.allclose(together["scores"][n], one["scores"][0], atol=1e-5)
        assert np.allclose(together["boxes"][n], one["boxes"][0], atol=1e-3)


def test_openvino_runs_the_same_files(one_stage, two_stage, pictures):
    assert [c.runtime for c in one_stage[0].comparisons] == ["onnxruntime", "openvino"]
    assert all(c.passed for c in one_stage[0].comparisons), [c.lines() for c in one_stage[0].comparisons]
    exported, subject = two_stage
    told = Comparison("openvino", 1e-4)
    subject.compare(pictures[2], [(told, openvino_runner(exported.path, 1))])
    assert told.passed, told.lines()


def test_metadata_say_what_the_file_is(one_stage, two_stage):
    exported, subject = one_stage
    facts = open_session(exported.path, 1).get_modelmeta().custom_metadata_map
    assert facts["format"] == "smartclip_det.onnx/1"
    assert facts["kind"] == "one_stage_detector"
    assert json.loads(facts["names"]) == list(NAMES)
    assert ScoringPolicy.from_dict(json.loads(facts["policy"])) == subject.family.policy
    assert json.loads(facts["hashes"])["towers"] == subject.family.towers.checkpoint_hash
    rule = json.loads(facts["preprocessing"])
    assert rule["size"] == [64, 64]
    assert rule["mean"] == pytest.approx([122.7709383, 116.7460125, 104.09373615])
    assert (rule["resize"], rule["interpolation"], rule["channels"]) == ("fit", "bicubic", "RGB")
    exported, subject = two_stage
    facts = open_session(exported.path, 1).get_modelmeta().custom_metadata_map
    assert "names" not in facts
    rows = np.load(exported.bank)
    assert rows["names"].tolist() == list(NAMES)
    assert np.array_equal(rows["masks"], subject.bank.masks.numpy())
    assert json.loads(str(rows["provenance"]))["checkpoint_hash"] == json.loads(facts["hashes"])["towers"]


@pytest.mark.parametrize("stage", ["one_stage", "two_stage"])
def test_the_example_needs_no_torch(stage, request, pictures, tmp_path):
    exported, subject = request.getfixturevalue(stage)
    picture = tmp_path / "picture.png"
    pictures[0].save(picture)
    blocked = ("torch", "torchvision", "mmcv", "mmdet", "mmengine", "cv2", "smartclip_det", "onnx")
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import runpy; runpy.run_path(sys.argv[1], run_name='__main__')"
    example = REPO / "docs/examples/onnx_detect.py"
    assert len(example.read_text().splitlines()) <= 60
    command = [
        sys.executable,
        "-c",
        f"{code.replace('sys.argv[1]', repr(str(example)))}",
        str(exported.path),
        str(picture),
    ]
    command += ["--threshold", "0.1", *(["--bank", str(exported.bank)] if exported.bank else [])]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    expected = subject.expected(pictures[0])
    kept = expected["scores"] >= 0.1
    assert abs(len(found) - kept.sum()) <= 0.1 * kept.sum()
    assert found[0]["score"] == pytest.approx(float(expected["scores"][0]), abs=0.02)
    # OpenCV rounds colours in fixed point, so that pixels may be one level off.
    best = [k for k in range(len(kept)) if NAMES[expected["labels"][k]] == found[0]["name"]]
    far = np.abs(expected["boxes"][best] - found[0]["box"]).max(axis=1)
    assert far.min() < 1.0


def test_a_tower_of_another_size_gives_pooled_and_dense_for_any_batch(tmp_path):
    tower = Tower(ExportOptions(out=tmp_path / "t.onnx", arch="SmartCLIP-tiny", size=(64, 96), dense_mode="qq_kk"))
    path = write_onnx(tower.graph.eval(), (64, 96), tmp_path / "t.onnx", {"kind": tower.graph.kind})
    run = runner_of(open_session(path, 1))
    for batch in (1, 3):
        images = torch.randn(batch, 3, 64, 96, generator=torch.Generator().manual_seed(batch))
        found = run({"images": images.numpy()})
        with torch.no_grad():
            assert np.abs(found["pooled"] - tower.towers.encode_image(images).numpy()).max() < 1e-4
            assert np.abs(found["dense"] - tower.towers.encode_dense(images, "qq_kk").numpy()).max() < 1e-4
            assert np.abs(found["dense"] - tower.towers.encode_dense(images, "value").numpy()).max() > 1e-3
    assert found["dense"].shape == (3, 64, 8, 12)


def test_detectors_in_half_precision_leave_the_predictor_as_it_is(two_stage, pictures, tmp_path):
    options = ExportOptions(out=tmp_path / "half.onnx", config=str(REPO / OWL), texts=NAMES, fp16=True)
    exported = export_onnx(options)
    assert exported.comparisons[0].passed, exported.comparisons[0].lines()
    assert exported.comparisons[0].largest["scores"] > 0
    subject, picture = two_stage[1], pictures[2]
    before, graph, whole = subject.expected(picture), subject.graph, subject.graph.detector
    feed = {k: torch.from_numpy(v) for k, v in subject.inputs(picture).items()}
    graph.halve()
    try:
        assert next(graph.detector.neck.parameters()).dtype == torch.float16
        with torch.no_grad():
            scores = graph.eval()(**feed)[1][0].numpy()
    finally:
        graph.detector = whole
    assert np.array_equal(subject.expected(picture)["scores"], before["scores"])
    assert 0 < np.abs(scores[:5] - before["scores"][:5]).max() < 0.05


def test_encode_texts_writes_rows_for_a_bank_input(two_stage, tmp_path):
    from smartclip_det.cli.dispatch import main

    exported, _ = two_stage
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    source = ["--arch", "SmartCLIP-toy", "--vocabulary", str(tmp_path / "names.txt"), "--no-cache"]
    with pytest.raises(SystemExit) as left:
        main(["encode-texts", *source, "--out", str(tmp_path / "rows.npz")])
    assert left.value.code == 0
    mine, theirs = np.load(tmp_path / "rows.npz"), np.load(exported.bank)
    assert mine["names"].tolist() == list(NAMES)
    assert np.allclose(mine["embeds"], theirs["embeds"], atol=1e-6)
    assert np.array_equal(mine["masks"], theirs["masks"])


def test_the_verb_writes_half_precision_and_says_how_far_it_is_off(tmp_path, capsys):
    from smartclip_det.cli.dispatch import main

    out = tmp_path / "half.onnx"
    with pytest.raises(SystemExit) as left:
        main(["export", "--arch", "SmartCLIP-toy", "--fp16", "--bench", "--rounds", "1", "--out", str(out)])
    told = capsys.readouterr().out
    assert left.value.code == 0, told
    content = json.loads(out.with_suffix(".json").read_text())
    assert 0 < content["metrics"]["onnxruntime_pooled"] < 2e-2
    assert content["protocol"]["precision"] == "fp16"
    assert set(content["seconds"]) == {"pytorch", "onnxruntime"}
    assert "largest difference pooled" in told
    # 105,000 weights of the image tower in two bytes each.
    assert out.stat().st_size < 300_000


def test_the_verb_fails_where_the_file_differs(tmp_path, monkeypatch, capsys):
    from smartclip_det.apis.exporting import exporting
    from smartclip_det.cli.dispatch import main

    def off(session):
        run = runner_of(session)
        return lambda feed: {k: v + np.float32(2e-4) for k, v in run(feed).items()}

    monkeypatch.setattr(exporting, "onnx_runner", off)
    with pytest.raises(SystemExit) as left:
        main(["export", "--arch", "SmartCLIP-toy", "--out", str(tmp_path / "t.onnx")])
    assert left.value.code == 1
    assert "FAILED: onnxruntime" in capsys.readouterr().out


def answers(boxes, scores, labels):
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "scores": np.array(scores, np.float32),
        "labels": np.array(labels),
    }


def test_detections_are_compared_by_label_box_and_score():
    box, other = [0, 0, 10, 10], [5, 5, 20, 20]
    two = answers([box, other], [0.9, 0.5], [0, 1])
    for found, passed in (
        (answers([other, box], [0.5, 0.9], [1, 0]), True),
        (answers([box], [0.9], [0]), False),
        (answers([box, other, box], [0.9, 0.5, 0.4], [0, 1, 1]), False),
        (answers([box, other], [0.9, 0.5], [0, 0]), False),
        (answers([box, [5, 5, 20, 21]], [0.9, 0.5], [0, 1]), False),
        (answers([box, other], [0.9, 0.5005], [0, 1]), False),
        (answers([box, other], [0.9, float("nan")], [0, 1]), False),
    ):
        told = Comparison("x", 1e-4)
        compare_detections(told, two, found, 100)
        assert told.passed is passed, found
    # NaN in the other result does not match, whatever is expected.
    told = Comparison("x", 1e-4)
    compare_detections(told, answers([], [], []), answers([box], [float("nan")], [0]), 100)
    assert not told.passed
    # Just above the threshold on one side only.
    told = Comparison("x", 1e-4)
    compare_detections(told, answers([box], [0.9], [0]), answers([box, other], [0.9, 0.30005], [0, 1]), 100, 0.3)
    assert (told.passed, told.at_the_cut) == (True, 1)
    # The last row of a full result may be another one with the same score.
    told = Comparison("x", 1e-4)
    compare_detections(told, two, answers([box, [7, 7, 9, 9]], [0.9, 0.5], [0, 1]), 2)
    assert told.passed
    assert told.at_the_cut == 2
    assert not Comparison("x", 1e-4).passed
    # One of two detections differs: within a limit of half of them, not of a quarter.
    for share, passed in ((0.5, True), (0.25, False)):
        told = Comparison("x", 1e-4, share)
        compare_detections(told, two, answers([box, [7, 7, 9, 9]], [0.9, 0.5], [0, 1]), 100)
        assert told.passed is passed


def test_options_that_do_not_go_together_are_told(tmp_path):
    out = tmp_path / "m.onnx"
    for options, match in (
        ({}, "Nothing to export"),
        ({"encoder": "a.pt", "arch": "b"}, "Nothing to export"),
        ({"arch": "CLIP-toy", "texts": ["cat"]}, "--texts or --vocabulary need --config"),
        ({"arch": "CLIP-toy", "size": (60, 64)}, "Nearest: --size 64 64"),
        ({"arch": "CLIP-toy", "dense_mode": "qq_kk"}, "qq_kk"),
        ({"arch": "CLIP-toy", "check": [tmp_path / "absent.jpg"]}, "absent.jpg does not exist"),
        ({"config": OWL}, "needs class names"),
        ({"config": OWL, "texts": ["cat"], "arch": "CLIP-toy"}, "exports an image tower"),
        ({"config": OWL, "texts": ["cat"], "threshold": 2.0}, "threshold"),
    ):
        with pytest.raises(UserError, match=match):
            export_onnx(ExportOptions(out=out, **options))
    assert not out.exists()
    with pytest.raises(UserError, match="multiples of 16"):
        check_size((16, 5000), 16)
    with pytest.raises(UserError, match="control that needs the texts"):
        check_input_policy(ScoringPolicy(dense_mask_mode="shuffled"))
    bank = generated_bank(2, 8)
    double = dataclasses.replace(bank, names=("a",), class_index=torch.tensor([0, 0]), seen=torch.tensor([True]))
    with pytest.raises(UserError, match="2 rows for 1 names"):
        bank_rows(double, ScoringPolicy())


def test_cosines_in_chunks_are_those_of_the_whole():
    bank = generated_bank(7, 16)
    vectors = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    whole = masked_cosine(vectors, bank.embeds, bank.masks)
    for size in (1, 3, 7, 20):
        assert torch.allclose(masked_cosine(vectors, bank.embeds, bank.masks, chunk_size=size), whole, atol=1e-6)
    assert masked_cosine(vectors, bank.embeds[:0], None, chunk_size=3).shape == (3, 0)
