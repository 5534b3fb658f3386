"""One-stage head: closed forms, matching, federated loss, geometry, and overfitting."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from mmengine.structures import InstanceData

from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.similarity import masked_cosine
from smartclip_det.core.text_bank import TextBank
from smartclip_det.engine.config import load_config
from smartclip_det.models.dense_heads.owl_head import OWLHead, TokenPredictions, cell_logits
from smartclip_det.models.vocabulary import build_bank
from tests.conftest import REPO
from tests.detection.tiny import TOWERS, encoder

OFF = ScoringPolicy(mask_mode="off")


def head(**options):
    torch.manual_seed(0)
    return OWLHead(16, embed_dim=8, **options)


def bank_of(classes=3, seen=None):
    g = torch.Generator().manual_seed(0)
    masks = (torch.rand(classes, 8, generator=g) > 0.3).float()
    bank = TextBank(tuple(f"class {k}" for k in range(classes)), torch.randn(classes, 8, generator=g), masks)
    return bank if seen is None else bank.with_seen([f"class {k}" for k in seen])


def sample(boxes, labels, shape=(64, 64), scale=(1.0, 1.0)):
    from mmdet.structures import DetDataSample

    data = DetDataSample(metainfo={"img_shape": shape, "scale_factor": scale, "img_id": 1})
    data.gt_instances = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels=torch.tensor(labels, dtype=torch.long)
    )
    return data


def test_an_untrained_head_gives_each_cell_its_own_box():
    boxes = cell_logits((2, 4), torch.device("cpu")).sigmoid()
    assert boxes[0].tolist() == pytest.approx([0.125, 0.25, 0.25, 0.5], abs=1e-5)
    assert boxes[5].tolist() == pytest.approx([0.375, 0.75, 0.25, 0.5], abs=1e-5)
    found = head()(torch.randn(2, 16, 2, 4), torch.randn(2, 16))
    assert torch.allclose(found.boxes[1], boxes, atol=1e-6)


def test_logits_are_shifted_and_scaled_masked_cosines():
    bank, part = bank_of(), head()
    g = torch.Generator().manual_seed(1)
    found = TokenPredictions(
        torch.randn(2, 5, 8, generator=g),
        torch.randn(2, 5, generator=g),
        torch.randn(2, 5, generator=g),
        torch.rand(2, 5, 4, generator=g),
    )
    got = part.logits(found, bank, ScoringPolicy())
    for b in range(2):
        cosine = masked_cosine(found.vectors[b], bank.embeds, bank.masks)
        scale = torch.nn.functional.elu(found.scale[b]) + 1
        assert torch.allclose(got[b], (cosine + found.shift[b][:, None]) * scale[:, None], atol=1e-5)
    with pytest.raises(UserError, match="D = 4"):
        part.logits(found, TextBank(("a",), torch.ones(1, 4), torch.ones(1, 4)), OFF)


def test_class_vectors_start_as_the_towers_own_dense_map():
    from mmdet.registry import MODELS

    config = owl_config()
    config.model.bbox_head.merge_class_token = False
    detector = MODELS.build(config.model).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        vectors = detector.extract_feat(images).vectors[0]
        dense = detector.backbone.image_tower.features(images, dense_mode="vanilla").dense
    assert torch.allclose(vectors, dense.flatten(2)[0].t(), atol=1e-4)


def test_matching_takes_the_right_token_and_losses_vanish_for_a_perfect_head():
    bank, part = bank_of(), head()
    grid = cell_logits((4, 4), torch.device("cpu")).sigmoid()[None]
    target = sample([[16, 16, 32, 32]], [2])
    vectors = torch.zeros(1, 16, 8)
    vectors[0] = bank.embeds[0]
    vectors[0, 5] = bank.embeds[2]
    found = TokenPredictions(vectors, torch.full((1, 16), -0.9), torch.full((1, 16), 200.0), grid)
    losses = part.loss(found, [target], (64, 64), bank, OFF)
    assert losses["loss_bbox"] == pytest.approx(0, abs=1e-5)
    assert losses["loss_giou"] == pytest.approx(0, abs=1e-5)
    tokens, matched = part._match(
        torch.tensor([[0.0, 0, 16, 16], [16, 16, 32, 32]]),
        torch.zeros(2, 3),
        target.gt_instances.bboxes,
        target.gt_instances.labels,
        (64, 64),
    )
    assert tokens.tolist() == [1]
    assert matched.tolist() == [0]


def test_images_without_boxes_have_a_loss_with_gradients():
    bank, part = bank_of(), head()
    found = part(torch.randn(1, 16, 4, 4), torch.randn(1, 16))
    losses = part.loss(found, [sample([], [])], (64, 64), bank, OFF)
    sum(losses.values()).backward()
    assert torch.isfinite(part.fc_class.weight.grad).all()
    assert part.box_mlp[-1].weight.grad is not None


def test_unseen_classes_take_no_part_and_their_boxes_are_refused():
    bank, part = bank_of(seen=[0, 1]), head()
    assert part._classes_in_loss(torch.tensor([0]), bank).tolist() == [1, 1, 0]
    found = part(torch.randn(1, 16, 4, 4), torch.randn(1, 16))
    with pytest.raises(UserError, match="class 2"):
        part.loss(found, [sample([[0, 0, 9, 9]], [2])], (64, 64), bank, OFF)


def test_federated_losses_hold_present_classes_and_drawn_seen_ones():
    bank, part = bank_of(20, seen=range(15)), head(federated=6)
    drawn = torch.zeros(20)
    for seed in range(50):
        torch.manual_seed(seed)
        weights = part._classes_in_loss(torch.tensor([3, 3, 4]), bank)
        assert weights.sum() == 6
        assert weights[[3, 4]].tolist() == [1, 1]
        drawn += weights
    assert (drawn[15:] == 0).all()
    assert (drawn[:15] > 0).all()
    assert head(federated=2)._classes_in_loss(torch.tensor([0, 1, 2]), bank).sum() == 3


def test_boxes_come_back_in_original_pixels_inside_the_image():
    bank, part = bank_of(), head(test_cfg={"max_per_img": 4})
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.25], [0.9, 0.9, 0.6, 0.6]]])
    vectors = torch.stack([bank.embeds[1], -bank.embeds[1]])[None]
    found = TokenPredictions(vectors, torch.zeros(1, 2), torch.full((1, 2), 5.0), boxes)
    out = part.predict(found, [sample([], [], shape=(48, 64), scale=(0.5, 0.25))], (64, 64), bank, OFF)[0]
    assert out.label_names[0] == "class 1"
    assert out.bboxes[0].tolist() == pytest.approx([32, 96, 96, 160])
    assert len(out) == 4
    assert out.bboxes[:, 2].max() <= 128 + 1e-4
    assert out.bboxes[:, 3].max() <= 192 + 1e-4


def test_boxes_are_cut_at_the_border_of_a_wide_or_a_tall_picture():
    """Exact to the pixel, with different scales in x and y and yet another padded shape."""
    bank, part = bank_of(), head(test_cfg={"max_per_img": 1})
    boxes = torch.tensor([[[0.5, 0.5, 0.9, 1.2]]])
    found = TokenPredictions(bank.embeds[1][None, None], torch.zeros(1, 1), torch.full((1, 1), 5.0), boxes)
    for shape, padded, expected in (
        ((48, 128), (64, 160), [8, 0, 128, 48]),
        ((128, 48), (160, 64), [3.2, 0, 48, 128]),
        ((64, 64), (64, 64), [3.2, 0, 60.8, 64]),
    ):
        for scale, rescale in (((1.0, 1.0), False), ((0.5, 0.25), True)):
            out = part.predict(found, [sample([], [], shape=shape, scale=scale)], padded, bank, OFF, rescale)[0]
            factor = [2, 4, 2, 4] if rescale else [1] * 4
            assert out.bboxes[0].tolist() == pytest.approx([e * f for e, f in zip(expected, factor, strict=True)])


def test_losses_vanish_for_a_perfect_head_on_a_wide_input():
    bank, part = bank_of(), head()
    grid = cell_logits((2, 4), torch.device("cpu")).sigmoid()[None]
    vectors = bank.embeds[0].expand(1, 8, 8).clone()
    vectors[0, 5] = bank.embeds[2]
    found = TokenPredictions(vectors, torch.full((1, 8), -0.9), torch.full((1, 8), 200.0), grid)
    losses = part.loss(found, [sample([[32, 16, 64, 32]], [2], shape=(32, 128))], (32, 128), bank, OFF)
    assert losses["loss_bbox"] == pytest.approx(0, abs=1e-5)
    assert losses["loss_giou"] == pytest.approx(0, abs=1e-5)


def owl_config(**options):
    config = load_config(REPO / "configs/toy/open-vocab-owl_smartclip-toy_toy.py", {"towers": dict(TOWERS), **options})
    config.model.backbone.out_indices = (3,)
    config.model.bbox_head.update(in_channels=64, embed_dim=64)
    return config


def test_the_last_layer_is_asked_for():
    from mmdet.registry import MODELS

    config = owl_config()
    config.model.backbone.out_indices = (1,)
    with pytest.raises(UserError, match="reads the last layer"):
        MODELS.build(config.model)


def test_an_untrained_detector_s_boxes_are_its_cells_and_a_bank_of_other_towers_is_refused():
    from mmdet.registry import MODELS

    detector = MODELS.build(owl_config().model).eval()
    detector.set_text_bank(build_bank(encoder(), ["that"], progress=False))
    wide = torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        cells = detector.predict(wide, [sample([], [], shape=(32, 64))])[0].pred_instances.bboxes
    assert sorted(cells.round().long().tolist()) == sorted(
        [x, y, x + 8, y + 8] for x in range(0, 64, 8) for y in range(0, 32, 8)
    )
    with pytest.raises(UserError, match="embeddings are not comparable"):
        detector.set_text_bank(copy.copy(build_bank(_other(), ["x"], progress=False)))


def _other():
    from smartclip_det.models.towers import SmartCLIP

    return SmartCLIP.from_arch(TOWERS["arch"], seed=9)


def test_overfit_real_photographs(shared, tmp_path):
    """Six photographs with large objects: a head and a tower that learn must detect nearly all of them."""
    from mmdet.registry import MODELS
    from mmengine.dataset import Compose, pseudo_collate

    root = shared / "coco_mini_train"
    data = json.loads((root / "instances_train2017.json").read_text())
    names = {c["id"]: c["name"] for c in data["categories"]}
    images = {i["id"]: i for i in data["images"]}
    boxes: dict[int, list] = {}
    for a in data["annotations"]:
        boxes.setdefault(a["image_id"], []).append(a)
    fits = [
        i
        for i, mine in boxes.items()
        if len(mine) <= 3
        and all(not a["iscrowd"] and a["area"] > 0.05 * images[i]["width"] * images[i]["height"] for a in mine)
    ][:6]
    assert len(fits) == 6
    vocabulary = sorted({names[a["category_id"]] for i in fits for a in boxes[i]})
    bank = build_bank(encoder(), vocabulary, progress=False)
    config = owl_config(**{"model.data_preprocessor.pad_size_divisor": 128})
    torch.manual_seed(0)
    detector = MODELS.build(config.model)
    detector.set_text_bank(bank)
    load = Compose(
        [
            {"type": "LoadImageFromFile"},
            {"type": "Resize", "scale": (128, 128), "keep_ratio": True},
            {"type": "PackDetInputs", "meta_keys": ("img_id", "ori_shape", "img_shape", "scale_factor")},
        ]
    )
    batch = [load({"img_path": str(root / "images" / images[i]["file_name"]), "img_id": i}) for i in fits]
    for i, item in zip(fits, batch, strict=True):
        factor = torch.tensor(item["data_samples"].scale_factor).repeat(2)
        xyxy = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in boxes[i])]) * factor
        item["data_samples"].gt_instances = InstanceData(
            bboxes=xyxy.float(), labels=torch.tensor([bank.index_of(names[a["category_id"]]) for a in boxes[i]])
        )
    inputs = detector.data_preprocessor(pseudo_collate(batch), True)
    optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=1e-3)
    detector.train()
    for _ in range(150):
        losses = detector.loss(inputs["inputs"], inputs["data_samples"])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
    detector.eval()
    with torch.no_grad():
        out = detector.predict(inputs["inputs"], copy.deepcopy(inputs["data_samples"]), rescale=False)
    hits, total = 0, 0
    for found, wanted in zip(out, inputs["data_samples"], strict=True):
        truth = wanted.gt_instances
        top = found.pred_instances[: 2 * len(truth)]
        from torchvision.ops import box_iou

        for box, label in zip(truth.bboxes, truth.labels, strict=True):
            right = box_iou(box[None], top.bboxes)[0] >= 0.5
            hits += int((right & (top.labels == label)).any())
            total += 1
    assert hits >= 0.9 * total, f"{hits} of {total}"
