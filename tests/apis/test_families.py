"""One predictor for every family: its answers equal the model's own; towers are loaded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from smartclip_det import Predictor, UserError
from smartclip_det.apis.families.detectors import tokens_of
from smartclip_det.models.towers.smartclip import SmartCLIP
from tests.apis.test_training_free import GRID, picture
from tests.conftest import REPO

TEXTS = ["a cup", "a dog"]
CONFIGS = {
    "one-stage detector": REPO / "configs/toy/open-vocab-owl_smartclip-toy_toy.py",
    "two-stage detector": REPO / "configs/toy/open-vocab-rcnn_smartclip-toy_toy.py",
    "grounding head": REPO / "configs/toy/referring_smartclip-toy_toy.py",
}
CACHE: dict[str, Predictor] = {}


def build(kind):
    if kind not in CACHE:
        torch.manual_seed(0)
        CACHE[kind] = Predictor.from_config(CONFIGS[kind], use_cache=False, parser="rules")
    return CACHE[kind]


@pytest.fixture(params=sorted(CONFIGS))
def predictor(request):
    return build(request.param)


@pytest.fixture(params=["one-stage detector", "two-stage detector"])
def detector(request):
    return build(request.param)


def wide(seed=3):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (60, 96, 3), dtype=np.uint8))


def test_every_family_answers_every_question(predictor):
    assert predictor.protocol["family"] == predictor.family.kind
    predictor.set_vocabulary(TEXTS)
    assert predictor.vocabulary == tuple(TEXTS)
    predictor.set_image(wide())
    found = predictor.detect(max_detections=7)
    assert 0 < len(found) <= 7
    assert found.size == (96, 60)
    assert (found.boxes >= -1e-3).all()
    assert (found.boxes <= np.array([96, 60, 96, 60]) + 1e-3).all()
    assert (np.diff(found.scores) <= 1e-6).all()
    assert set(found.names) == set(TEXTS)
    assert len(predictor.detect([])) == 0
    assert len(predictor.ground("the left cup")) == 1
    assert predictor.explain("a cup").similarity.ndim == 2
    assert predictor.embed([[0, 0, 50, 50], [10, 10, 90, 60]]).shape == (2, 256)
    alone = [predictor.detect(TEXTS, image=predictor.encode_image(i), max_detections=5) for i in (wide(), wide(4))]
    together = list(predictor.detect_images([wide(), wide(4)], TEXTS, batch_size=2, max_detections=5))
    for a, b in zip(alone, together, strict=True):
        assert np.allclose(a.boxes, b.boxes, atol=1e-3)
        assert np.allclose(a.scores, b.scores, atol=1e-5)


def test_a_one_stage_answer_is_that_of_the_detector_s_own_run():
    p = build("one-stage detector")
    bank = p.set_vocabulary(TEXTS)
    image = wide()
    p.set_image(image)
    data = p.family.pipeline({"img": np.ascontiguousarray(np.asarray(image)[..., ::-1]), "img_id": 0})
    batch = p.detector.data_preprocessor({k: [data[k]] for k in ("inputs", "data_samples")}, False)
    with torch.no_grad():
        (out,) = p.detector.predict(batch["inputs"], batch["data_samples"])
    mine = p.detect(max_detections=p.detector.bbox_head.max_per_img)
    assert np.allclose(np.sort(mine.scores), np.sort(out.pred_instances.scores.numpy()), atol=1e-6)
    best = out.pred_instances[out.pred_instances.scores.argsort(descending=True)][:1]
    assert np.allclose(mine.boxes[0], best.bboxes[0].numpy(), atol=1e-3)
    assert mine.label_names[0] == bank.names[best.labels[0]]
    assert p.proposals(3)[1].tolist() == [1, 1, 1]


def test_boxes_that_are_given_are_scored_as_they_are(detector):
    given = [[3.0, 4, 40, 50], [50, 2, 90, 58]]
    detector.set_image(wide(), boxes=given)
    found = detector.detect(TEXTS)
    assert {tuple(b) for b in np.round(found.boxes, 3).tolist()} <= {tuple(b) for b in given}
    assert len(found) >= 2
    detector.set_image(wide(), boxes=[])
    assert len(detector.detect(TEXTS)) == len(detector.ground("a cup")) == 0
    with pytest.raises(UserError, match="exceed the image"):
        detector.set_image(wide(), boxes=[[0, 0, 500, 500]])


def test_given_boxes_take_the_token_that_overlaps_most_and_far_ones_the_nearest():
    own = torch.tensor([[0.0, 0, 10, 10], [8, 8, 20, 20], [30, 30, 31, 31]])
    given = torch.tensor([[9.0, 9, 19, 19], [0, 0, 9, 9], [40, 40, 44, 44]])
    assert tokens_of(own, given).tolist() == [1, 0, 2]
    assert tokens_of(own, given[:0]).tolist() == []


def test_a_row_from_a_picture_finds_its_own_region_beside_texts(detector):
    bank = detector.set_vocabulary(TEXTS)
    example = detector.encode_image(picture(), boxes=GRID)
    before = detector.detect(image=example)
    more = detector.set_vocabulary(bank.with_images("my mug", [(picture(), GRID[4])]))
    found = detector.detect(image=example)
    assert found.of("my mug").boxes[0].tolist() == GRID[4]
    assert np.allclose(np.sort(found.of(*TEXTS).scores), np.sort(before.scores), atol=1e-6)
    assert not more.seen[-1]


def test_a_grounding_head_reads_words_alone():
    p = build("grounding head")
    bank = p.set_vocabulary(TEXTS)
    p.set_image(wide())
    new, joined = (bank.with_images(name, [(picture(), GRID[4])]) for name in ("my mug", "a dog"))
    for call in (p.set_vocabulary, p.detect, lambda b: next(p.detect_images([wide()], b))):
        with pytest.raises(UserError, match=r"needs word tokens.*: my mug\. .*bank\.select.*from_pretrained"):
            call(new)
        with pytest.raises(UserError, match=r": a dog\."):
            call(joined)
    assert p.vocabulary == tuple(TEXTS)
    assert p.set_vocabulary(new.select(TEXTS)).names == tuple(TEXTS)
    p.set_vocabulary(bank)
    both, one = p.detect(TEXTS), p.ground("a dog", top_k=10)
    assert np.allclose(both.of("a dog").scores, one.scores, atol=1e-6)
    with pytest.raises(UserError, match="policy only applies to detectors"):
        Predictor.from_config(CONFIGS["grounding head"], policy={"mask_mode": "off"})


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_towers_are_read_once_and_texts_are_those_of_the_whole_towers(kind, monkeypatch):
    made = []
    real = SmartCLIP.from_arch

    def counted(*args, **options):
        made.append(args)
        return real(*args, **options)

    monkeypatch.setattr(SmartCLIP, "from_arch", staticmethod(counted))
    p = Predictor.from_config(CONFIGS[kind], use_cache=False)
    assert len(made) == 1
    whole = real("SmartCLIP-toy", seed=0)
    assert p.encoder.checkpoint_hash == whole.checkpoint_hash
    mine, theirs = p.encoder.encode_text(TEXTS), whole.encode_text(TEXTS)
    assert torch.equal(mine.embeds, theirs.embeds)
    assert torch.equal(mine.masks, theirs.masks)
    assert mine.provenance == theirs.provenance


def test_a_trained_backbone_keeps_the_texts_of_the_towers_that_it_came_from():
    torch.manual_seed(0)
    p = Predictor.from_config(CONFIGS["one-stage detector"], use_cache=False)
    before = p.encoder.checkpoint_hash
    with torch.no_grad():
        next(p.detector.backbone.image_tower.parameters()).add_(1.0)
    assert p.encoder.checkpoint_hash == before
    p.set_vocabulary(TEXTS)  # a bank of another hash would be refused


def test_masks_of_detections_are_those_of_the_mask_head(monkeypatch):
    p = build("two-stage detector")
    with pytest.raises(UserError, match="no mask head"):
        p.segment("a cup", image=p.encode_image(wide()))
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict

    channels = p.detector.roi_head.bbox_roi_extractor.out_channels
    torch.manual_seed(0)
    head = MODELS.build(
        {
            "type": "FCNMaskHead",
            "num_convs": 1,
            "in_channels": channels,
            "conv_out_channels": 8,
            "num_classes": 1,
            "class_agnostic": True,
        }
    )
    head.init_weights()
    extractor = p.detector.roi_head.bbox_roi_extractor
    for name, value in (
        ("mask_head", head),
        ("mask_roi_extractor", extractor),
        ("mask_test_cfg", ConfigDict(mask_thr_binary=0.0)),
    ):
        monkeypatch.setattr(p.detector.roi_head, name, value)
    p.set_image(wide())
    found = p.detect(TEXTS, max_detections=3)
    masks = p.segment(found)
    assert masks.shape == (len(found), 60, 96)
    assert masks.dtype == bool
    # Every probability is above 0: masks fill their boxes and nothing else.
    for mask, box in zip(masks, found.boxes, strict=True):
        rows, columns = np.nonzero(mask)
        inside = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.allclose(inside, box, atol=2)
    one = p.segment("a cup")
    assert one.shape == (60, 96)
    assert one.any()


def test_former_names_work_and_say_what_is_there_now():
    from smartclip_det import ReferringPredictor, SmartCLIPPredictor

    with pytest.warns(FutureWarning, match=r"SmartCLIPPredictor is now smartclip_det.Predictor"):
        p = SmartCLIPPredictor.from_config(CONFIGS["two-stage detector"], use_cache=False)
    assert isinstance(p, Predictor)
    family = p.family
    with pytest.warns(FutureWarning):
        parts = SmartCLIPPredictor(family.detector, family.towers, family.pipeline)
    assert parts.policy == p.policy
    with pytest.warns(FutureWarning, match="ReferringPredictor is now"):
        old = ReferringPredictor(build("grounding head").family.model)
    assert len(old.ground("a cup", image=old.encode_image(wide()))) == 1


def test_configs_of_other_models_are_refused():
    with pytest.raises(UserError, match="must build OpenVocabRCNN or OpenVocabOWL or SmartCLIPReferring"):
        Predictor.from_config(REPO / "configs/stock_detectors/retinanet_smartclip-b16_fpn_1x_coco.py")
