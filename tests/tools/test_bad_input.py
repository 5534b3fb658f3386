"""Odd images, vocabularies and checkpoints: a defined result, or a message that says what to do."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from PIL import Image

from smartclip_det.apis import Predictor
from smartclip_det.apis.inputs import load_image
from smartclip_det.core.errors import UserError
from smartclip_det.core.text_bank import TextBank
from smartclip_det.engine.launch import refuse_foreign_checkpoint
from smartclip_det.models.towers import SmartCLIP
from smartclip_det.models.vocabulary import build_bank
from smartclip_det.utils.cli import run_tool
from smartclip_det.utils.images import open_rgb
from tests.detection.tiny import build, encoder, smoke_config
from tests.tools.test_runs import run


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "config.py"
    smoke_config().dump(path)
    return Predictor.from_config(path, use_cache=False)


class TestImages:
    @pytest.mark.parametrize("size", [(1, 1), (10_000, 20), (20, 10_000), (7, 3)])
    def test_any_size_gives_boxes_inside_the_image(self, predictor, size):
        g = np.random.default_rng(0)
        predictor.set_image(g.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
        found = predictor.detect(["cat"])
        assert np.isfinite(found.boxes).all()
        assert (found.boxes >= -0.01).all()
        assert (found.boxes[:, 2] <= size[0] + 0.01).all()
        assert (found.boxes[:, 3] <= size[1] + 0.01).all()

    def test_16_bit_grey_keeps_its_greys(self, tmp_path):
        values = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
        Image.fromarray(values).save(tmp_path / "deep.png")
        got = load_image(tmp_path / "deep.png")
        assert got.shape == (16, 16, 3)
        assert np.array_equal(got[..., 0], (values >> 8).astype(np.uint8))

    def test_cmyk_palette_and_transparent_images_are_rgb(self, tmp_path):
        red = Image.new("RGB", (8, 8), (255, 0, 0))
        red.convert("CMYK").save(tmp_path / "a.jpg", quality=100)
        red.convert("P").save(tmp_path / "b.png")
        red.convert("RGBA").save(tmp_path / "c.png")
        red.convert("L").save(tmp_path / "d.png")
        for name in "abc":
            path = next(tmp_path.glob(f"{name}.*"))
            assert np.abs(load_image(path)[4, 4].astype(int) - [255, 0, 0]).max() <= 3, name
        assert np.ptp(load_image(tmp_path / "d.png")[4, 4]) == 0

    def test_turned_photographs_are_seen_upright_by_every_reader(self, tmp_path):
        import mmcv

        picture = np.zeros((40, 80, 3), dtype=np.uint8)
        picture[:, :40] = 255
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(picture).save(tmp_path / "turned.jpg", exif=exif, quality=100)
        ours = np.asarray(open_rgb(tmp_path / "turned.jpg"))
        theirs = mmcv.imread(str(tmp_path / "turned.jpg"))[..., ::-1]
        assert ours.shape == theirs.shape == (80, 40, 3)
        assert np.abs(ours.astype(int) - theirs).max() <= 8

    def test_a_bad_image_in_a_folder_is_reported_and_the_rest_completes(self, tmp_path):
        smoke_config().dump(tmp_path / "config.py")
        folder = tmp_path / "photos"
        folder.mkdir()
        Image.new("RGB", (64, 64), (9, 99, 199)).save(folder / "a.png")
        (folder / "b.jpg").write_bytes(b"\xff\xd8 cut short")
        Image.new("L", (30, 50)).save(folder / "c.png")
        done = run(
            "tools/demo.py",
            folder,
            "--text",
            "cat",
            "--config",
            tmp_path / "config.py",
            "--out-dir",
            tmp_path / "out",
            check=False,
        )
        assert done.returncode == 2
        assert "b.jpg: skipped" in done.stderr
        assert "1 of 3 images could not be processed" in done.stderr
        assert sorted(p.name for p in (tmp_path / "out").glob("*.json")) == ["a.json", "c.json"]


class TestVocabularies:
    def test_refused(self, predictor):
        for names, said in (
            (["cat", "cat"], "repeats names: cat"),
            (["cat", " "], "empty"),
            ("cat", "list of strings"),
            (["word " * 300], "tokens"),
        ):
            with pytest.raises(UserError, match=said):
                predictor.set_vocabulary(names)

    def test_no_names_give_no_boxes(self, predictor):
        predictor.set_image(np.zeros((32, 32, 3), dtype=np.uint8))
        assert len(predictor.detect([])) == 0

    def test_a_hundred_thousand_names(self, predictor):
        g = torch.Generator().manual_seed(0)
        embeds = torch.randn(100_000, 64, generator=g)
        bank = TextBank(
            tuple(f"name {i}" for i in range(100_000)),
            embeds,
            torch.ones(100_000, 64),
            background=build_bank(encoder(), ["x"], progress=False).background,
        )
        predictor.set_vocabulary(bank)
        predictor.set_image(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
        found = predictor.detect(max_detections=20)
        assert len(found) == 20
        assert set(found.label_names) <= set(bank.names)

    def test_banks_of_other_towers_and_sizes(self, predictor):
        other = build_bank(SmartCLIP.from_arch("SmartCLIP-tiny", seed=5), ["cat"], progress=False)
        with pytest.raises(UserError, match="embedding spaces differ"):
            predictor.set_vocabulary(other)
        predictor.set_vocabulary(TextBank(("cat",), torch.ones(1, 32), torch.ones(1, 32)))
        predictor.set_image(np.zeros((32, 32, 3), dtype=np.uint8))
        with pytest.raises(UserError, match="D = 32"):
            predictor.detect()


class TestCheckpoints:
    def test_nan_is_refused_by_towers_and_detectors(self, tmp_path):
        towers = encoder()
        with torch.no_grad():
            towers.image_tower.conv1.weight[0, 0, 0, 0] = float("nan")
        towers.save(tmp_path / "towers.safetensors")
        with pytest.raises(UserError, match=r"NaN or infinite values in 1 of \d+ tensors \(visual.conv1.weight\)"):
            SmartCLIP.from_checkpoint(tmp_path / "towers.safetensors")
        detector = build(smoke_config())
        state = {k: v.clone() for k, v in detector.state_dict().items()}
        state["roi_head.bbox_head.fc_reg.bias"][0] = float("inf")
        torch.save({"state_dict": state}, tmp_path / "detector.pth")
        with pytest.raises(UserError, match="fc_reg.bias"):
            refuse_foreign_checkpoint(detector, tmp_path / "detector.pth")


class TestTraining:
    def test_images_whose_objects_are_all_crowds_have_a_loss(self):
        from mmdet.structures import DetDataSample

        init_default_scope("mmdet")
        detector = build(smoke_config()).train()
        detector.set_text_bank(build_bank(encoder(), ["cat", "dog"], progress=False))
        sample = DetDataSample(
            metainfo={
                "img_shape": (128, 128),
                "pad_shape": (128, 128),
                "scale_factor": (1.0, 1.0),
                "batch_input_shape": (128, 128),
                "img_id": 1,
            }
        )
        sample.gt_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        sample.ignored_instances = InstanceData(
            bboxes=torch.tensor([[0.0, 0, 100, 100]]), labels=torch.zeros(1, dtype=torch.long)
        )
        losses = detector.loss(torch.randn(1, 3, 128, 128), [sample])
        total = sum(v if isinstance(v, torch.Tensor) else sum(v) for k, v in losses.items() if "loss" in k)
        total.backward()
        assert torch.isfinite(total)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_names_the_flags(error, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as left:
        run_tool(main)
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert "out of memory" in said
    assert "train_dataloader.batch_size=1" in said


def test_other_runtime_errors_keep_their_traceback():
    def main():
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        run_tool(main)


def test_large_result_lists_are_read_in_pieces_with_the_same_answer(tmp_path, monkeypatch):
    from smartclip_det.formats import predictions as files
    from smartclip_det.formats.columns import DetectionColumns
    from tests.protocols.test_rules import perfect, small_truth

    truth = small_truth()
    rows = perfect(truth) * 40
    monkeypatch.setattr(files, "STREAMED_FROM", 0)
    for size, indent in ((37, None), (100, 1), (10**6, None)):
        monkeypatch.setattr(files, "PIECE", size)
        (tmp_path / "p.json").write_text(json.dumps(rows, indent=indent))
        read = files.read_predictions(tmp_path / "p.json", truth)
        assert list(read) == rows
        assert isinstance(read, DetectionColumns) or size < 1000
    monkeypatch.setattr(files, "PIECE", 200)
    # Files that are not plain lists of boxes are parsed by the slower, validating reader.
    (tmp_path / "p.json").write_text(json.dumps([*rows, {"image_id": 1}]))
    with pytest.raises(UserError, match=f"Prediction {len(rows)} "):
        files.check_predictions(files.read_predictions(tmp_path / "p.json", truth), truth)
    (tmp_path / "p.json").write_text(json.dumps(rows)[:-30])
    with pytest.raises(UserError, match="may be truncated"):
        files.read_predictions(tmp_path / "p.json", truth)
    (tmp_path / "p.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="JSON list"):
        files.read_predictions(tmp_path / "p.json", truth)
