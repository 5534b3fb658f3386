"""Sources of boxes: torchvision's proposals, detectors of transformers, and given boxes."""

from __future__ import annotations

import json
import string
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models.detection.image_list import ImageList

from smartclip_det.core.errors import UserError
from smartclip_det.models.boxes import FileBoxes, Photograph, TorchvisionBoxes, TransformersBoxes, checked_boxes
from smartclip_det.models.boxes import rpn as rpn_module
from smartclip_det.models.boxes.rpn import proposals

SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"


def photo(width=96, height=64, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Photograph(Image.fromarray(pixels), "a.png")


@pytest.fixture(scope="module")
def torchvision_boxes():
    return TorchvisionBoxes(SMALL, weights=None, max_boxes=20, size=64)


def test_proposals_are_torchvision_s_own_with_the_scores_that_it_drops(torchvision_boxes):
    model = torchvision_boxes.model
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))
    inputs, _ = model.transform([image])
    with torch.no_grad():
        boxes, scores = proposals(model, inputs)
        theirs, _ = model.rpn(inputs, model.backbone(inputs.tensors))
    assert isinstance(inputs, ImageList)
    assert torch.allclose(boxes, theirs[0])
    assert scores.shape == (len(boxes),)
    assert (scores[:-1] >= scores[1:]).all()
    assert 0 <= scores.min() <= scores.max() <= 1


def test_boxes_are_in_pixels_of_the_picture_and_do_not_depend_on_the_batch(torchvision_boxes):
    pictures = [photo(), photo(200, 40, 1)]
    together = torchvision_boxes(pictures)
    for picture, found in zip(pictures, together, strict=True):
        (alone,) = torchvision_boxes([picture])
        assert torch.equal(alone.boxes, found.boxes)
        assert torch.equal(alone.scores, found.scores)
        assert 0 < len(found.boxes) <= 20
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, 2] <= picture.image.width + 1e-3).all()
        assert found.boxes[:, 2].max() > 0.5 * picture.image.width
    assert torchvision_boxes.facts() == {
        "source": "torchvision",
        "model": SMALL,
        "weights": "random",
        "max_boxes": 20,
        "nms_iou": 0.7,
        "size": 64,
    }


def test_weights_come_from_a_file_or_by_torchvision_s_address(torchvision_boxes, tmp_path, monkeypatch, capsys):
    whole = rpn_module.get_model(SMALL, weights=None, weights_backbone=None)
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    mine = TorchvisionBoxes(SMALL, weights=tmp_path / "w.pth", size=64)
    assert torch.equal(mine.model.rpn.head.cls_logits.weight, whole.rpn.head.cls_logits.weight)
    assert mine.facts()["weights"] == "w.pth"
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="has no weights for torchvision's"):
        TorchvisionBoxes(SMALL, weights=tmp_path / "other.pth")
    with pytest.raises(UserError, match="weights='COCO_V2'.*Nearest: COCO_V1"):
        TorchvisionBoxes(SMALL, weights="COCO_V2")

    def asked(url, **options):
        assert options["check_hash"]
        if "offline" in state:
            raise URLError("no network")
        return whole.state_dict()

    state = set()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(rpn_module, "safe_url_load", asked)
    fetched = TorchvisionBoxes(SMALL, size=64)
    assert torch.equal(fetched.model.rpn.head.cls_logits.weight, whole.rpn.head.cls_logits.weight)
    assert "trained on COCO" in capsys.readouterr().err
    state.add("offline")
    with pytest.raises(UserError, match=f"could not be downloaded from https://.*boxes='torchvision:{SMALL}:FILE'"):
        TorchvisionBoxes(SMALL, size=64)


def owlv2(folder):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra grounding-dino)")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.Owlv2Config(
        text_config={**small, "vocab_size": 100},
        vision_config={**small, "image_size": 64, "patch_size": 16},
        projection_dim=32,
    )
    torch.manual_seed(0)
    transformers.Owlv2ForObjectDetection(config).save_pretrained(folder)
    transformers.Owlv2ImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def test_owlv2_s_boxes_are_those_of_its_own_heads_in_pixels_of_the_picture(tmp_path):
    source = TransformersBoxes(str(owlv2(tmp_path)), max_boxes=8, nms_iou=1.0)
    picture = photo(96, 64)
    (found,) = source([picture])
    inputs = source.processor(images=picture.image, return_tensors="pt")
    with torch.no_grad():
        out = source.model(**inputs, input_ids=torch.tensor([[1, 2, 99]]))
    objectness = out.objectness_logits[0].flatten().sigmoid()
    centres, sides = out.pred_boxes[0, :, :2], out.pred_boxes[0, :, 2:]
    # The image is padded to 96 x 96; boxes are clipped to the image, and boxes in the padding are dropped.
    corners = torch.cat([centres - sides / 2, centres + sides / 2], dim=1) * 96
    corners = torch.minimum(corners.clamp(min=0), torch.tensor([96.0, 64, 96, 64]))
    there = ((corners[:, 2:] - corners[:, :2]) >= 1).all(dim=1)
    assert not there.all()
    order = objectness[there].argsort(descending=True)[:8]
    assert torch.allclose(found.scores, objectness[there][order], atol=1e-5)
    assert torch.allclose(found.boxes, corners[there][order], atol=1e-3)
    assert source.facts()["source"] == "transformers"
    assert "prompt" not in source.facts()


def grounding_dino(folder):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra grounding-dino)")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        ".",
        *string.ascii_lowercase,
        *(f"##{c}" for c in string.ascii_lowercase),
    ]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    text = transformers.BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    backbone = transformers.SwinConfig(
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 2],
        window_size=4,
        image_size=64,
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.MMGroundingDinoConfig(
        text_config=text,
        backbone_config=backbone,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        num_queries=12,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
    )
    torch.manual_seed(0)
    transformers.MMGroundingDinoForObjectDetection(config).save_pretrained(folder)
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
    images = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    transformers.GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_mm_grounding_dino_is_asked_for_things_in_general(tmp_path):
    source = TransformersBoxes(str(grounding_dino(tmp_path)), prompt="cat. dog.", max_boxes=5, nms_iou=1.0)
    (found,) = source([photo(96, 64)])
    assert 0 < len(found.boxes) <= 5
    assert (found.boxes >= 0).all()
    assert (found.boxes <= torch.tensor([96.0, 64, 96, 64])).all()
    assert (found.scores[:-1] >= found.scores[1:]).all()
    assert source.facts()["prompt"] == "cat. dog."


def test_other_models_and_missing_ones_are_one_line(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed (extra grounding-dino)")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="has type bert; supported types: owlv2"):
        TransformersBoxes(str(tmp_path))
    with pytest.raises(UserError, match="could not be loaded by transformers") as error:
        TransformersBoxes(str(tmp_path / "absent"))
    assert "\n" not in str(error.value)


SIDES = st.integers(1, 2000)


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=5))
def test_boxes_of_a_picture_are_taken_and_of_one_twice_its_size_are_not(width, height, shares):
    boxes = [[min(a, c) * width, min(b, d) * height, max(a, c) * width, max(b, d) * height] for a, b, c, d in shares]
    found = checked_boxes(boxes, (width, height))
    assert found.shape == (len(boxes), 4)
    assert np.allclose(found.numpy(), np.array(boxes).reshape(-1, 4), atol=1e-3)
    whole = [[0, 0, 2 * width + 2, 2 * height + 2]]
    with pytest.raises(UserError, match="1 of 1 exceed the image"):
        checked_boxes(whole, (width, height))


def test_a_result_list_needs_the_annotations_that_name_its_pictures(tmp_path):
    images = [
        {"id": 7, "file_name": "train/a.png", "width": 96, "height": 64},
        {"id": 8, "file_name": "val/a.png", "width": 96, "height": 64},
    ]
    truth = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cup"}]}
    rows = [{"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "score": s} for s in (0.2, 0.9)]
    rows[1]["bbox"] = [10, 20, 30, 40]
    (tmp_path / "ann.json").write_text(json.dumps(truth))
    (tmp_path / "pred.json").write_text(json.dumps(rows))
    source = FileBoxes(tmp_path / "pred.json", instances=tmp_path / "ann.json")
    (found,) = source([Photograph(photo().image, "/data/train/a.png")])
    assert found.boxes.tolist() == [[10, 20, 40, 60], [1, 2, 4, 6]]
    assert found.scores.tolist() == pytest.approx([0.9, 0.2])
    (none,) = source([Photograph(photo().image, "/data/val/a.png")])
    assert len(none.boxes) == 0
    with pytest.raises(UserError, match="several images that match a.png"):
        source([Photograph(photo().image, "a.png")])
