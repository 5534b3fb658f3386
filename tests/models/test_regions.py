"""Region vectors on towers with known outputs: every vector is the mean colour of its input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.formats.annotations import GroundTruth
from smartclip_det.models.region_cache import CachedRegionEncoder
from smartclip_det.models.regions import VIEWS, RegionEncoder, crop_window, pool_masks
from smartclip_det.models.towers import DENSE_MODES, SmartCLIP, TowerConfig, VisionOutput
from smartclip_det.models.towers.tokenizer import image_statistics
from smartclip_det.probing.region_probe import ProbeRegions, probe_accuracy, probe_regions

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}


class ColourTowers(nn.Module):
    """Image vector: mean colour; dense map: mean colour of each patch; text: the colour that it names."""

    dense_modes = DENSE_MODES

    def __init__(self):
        super().__init__()
        self.config = TowerConfig(embed_dim=3, image_size=64, patch_size=8)
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in image_statistics())

    @staticmethod
    def image_statistics():
        return image_statistics()

    def colours(self, images):
        return images * self.std + self.mean

    def encode_image(self, images):
        return self.colours(images).mean(dim=(2, 3))

    def encode_dense(self, images, dense_mode="value"):
        return functional.avg_pool2d(self.colours(images), 8)


def scene():
    image = Image.new("RGB", (128, 96), (128, 128, 128))
    image.paste(COLOURS["red"], (0, 0, 32, 32))
    image.paste(COLOURS["blue"], (64, 32, 128, 96))
    return image


BOXES = [[0, 0, 32, 32], [64, 32, 128, 96]]


@pytest.mark.parametrize("fit", ["pad", "squash"])
@pytest.mark.parametrize(("view", "size"), [("crop", 0), ("dense", 0), ("dense", 128), ("mask", 128)])
def test_vectors_are_the_colours_of_their_boxes(view, size, fit):
    encoder = RegionEncoder(ColourTowers(), fit=fit, dense_size=size, crop_context=1.0)
    masks = np.zeros((2, 96, 128), dtype=bool)
    for mask, (x1, y1, x2, y2) in zip(masks, BOXES, strict=True):
        mask[y1:y2, x1:x2] = True
    found = encoder.vectors(scene(), BOXES, view, masks=masks)
    expected = torch.tensor([COLOURS["red"], COLOURS["blue"]]) / 255
    # Bicubic resizing and RoIAlign's samples near borders mix in some of the neighbours.
    assert torch.allclose(found, expected, atol=0.12)
    assert (functional.cosine_similarity(found, expected) > 0.98).all()


def test_boxes_of_whole_pixels_are_pooled_like_others():
    encoder = RegionEncoder(ColourTowers(), dense_size=64)  # half of the image: a factor below 1
    dense, image = encoder.dense_map(scene()), scene()
    whole, others = (
        encoder.pool(dense, [image.size], [torch.tensor(BOXES, dtype=d)]) for d in (torch.int64, torch.float32)
    )
    assert torch.equal(whole, others)
    assert not torch.allclose(whole[0], whole[1], atol=0.2)


def test_blur_keeps_the_inside_and_no_boxes_give_no_vectors():
    encoder = RegionEncoder(ColourTowers())
    assert encoder.vectors(scene(), BOXES, "blur").shape == (2, 3)
    assert encoder.vectors(scene(), [], "crop").shape == (0, 3)
    with pytest.raises(UserError, match="one mask per box"):
        encoder.vectors(scene(), BOXES, "mask")
    with pytest.raises(UserError, match="Nearest|Allowed|crop"):
        encoder.vectors(scene(), BOXES, "crp")
    with pytest.raises(UserError, match="crop_context"):
        RegionEncoder(ColourTowers(), crop_context=0.5)


def test_the_dense_map_is_computed_once_per_image_and_mode(monkeypatch):
    towers = ColourTowers()
    calls = []
    dense = towers.encode_dense
    monkeypatch.setattr(towers, "encode_dense", lambda *a: calls.append(a[1]) or dense(*a))
    encoder, image = RegionEncoder(towers), scene()
    for _ in range(3):
        encoder.vectors(image, BOXES, "dense")
    encoder.vectors(image, BOXES, "dense", dense_mode="vanilla")
    encoder.vectors(scene(), BOXES, "dense")
    assert calls == ["value", "vanilla", "value"]


def test_vectors_kept_on_disk_are_those_of_the_encoder_and_of_nothing_else(tmp_path, monkeypatch):
    towers = SmartCLIP.from_arch("SmartCLIP-tiny")
    rng = np.random.default_rng(0)
    photo, other = (Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)) for _ in range(2))
    boxes, masks = [[0, 0, 20, 20], [10.5, 5, 60, 40]], np.zeros((2, 40, 60), dtype=bool)
    masks[:, 5:30, 5:50] = True
    plain, kept = RegionEncoder(towers), CachedRegionEncoder(towers, tmp_path / "new")
    asked = [(photo, boxes, v, masks if v == "mask" else None) for v in VIEWS]
    asked += [(other, boxes, "crop"), (photo, boxes[:1], "crop"), (photo, boxes, "mask", ~masks)]
    for one in asked:
        assert torch.equal(kept.vectors(*one), plain.vectors(*one))
    assert len(list((tmp_path / "new").iterdir())) == len(asked)
    again = CachedRegionEncoder(towers, tmp_path / "new")
    wanted = [plain.vectors(*one) for one in asked]
    changed = [
        CachedRegionEncoder(towers, tmp_path / "new", **o)
        for o in ({"crop_context": 2.0}, {"dense_size": 128}, {"fit": "squash"})
    ]
    for name in ("encode_image", "encode_dense"):
        monkeypatch.setattr(towers, name, None)  # an encoding would fail
    for one, want in zip(asked, wanted, strict=True):
        assert torch.equal(again.vectors(*one), want)
    assert again.vectors(photo, [], "crop").shape == (0, towers.config.embed_dim)
    for one in changed:
        with pytest.raises(TypeError):
            one.vectors(photo, boxes, "crop")
    with pytest.raises(TypeError):
        again.vectors(photo, boxes, "dense", dense_mode="vanilla")
    monkeypatch.undo()
    alike = again.vectors(photo, boxes, "dense", pooling="unit")
    assert torch.equal(alike, plain.vectors(photo, boxes, "dense", pooling="unit"))
    assert not torch.allclose(alike, again.vectors(photo, boxes, "dense"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be created"):
        CachedRegionEncoder(towers, tmp_path / "file")


def test_a_window_over_the_border_is_filled():
    window = np.asarray(crop_window(scene(), [0, 0, 32, 32], 2.0, 64))
    assert tuple(window[0, 0]) == (123, 117, 104)
    assert tuple(window[32, 32]) == COLOURS["red"]


def test_masks_weigh_cells_by_their_share():
    dense = torch.tensor([[[1.0, 3.0]]])
    masks = torch.zeros(1, 2, 4)
    masks[0, :, :2] = 1
    masks[0, :, 2] = 1
    assert pool_masks(dense, masks).item() == pytest.approx((2 * 1 + 1 * 3) / 3)


def test_the_probe_with_an_oracle_is_perfect_and_with_swapped_texts_is_not(tmp_path):
    scene().save(tmp_path / "a.png")
    annotations = [
        {"id": n + 1, "image_id": 1, "category_id": c, "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]], "area": 1}
        for n, (c, b) in enumerate(zip((3, 1), BOXES, strict=True))
    ]
    data = {
        "images": [{"id": 1, "file_name": "a.png", "width": 128, "height": 96}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "blue"}, {"id": 3, "name": "red"}, {"id": 7, "name": "green"}],
    }
    from smartclip_det.core.text_bank import TextBank

    names = ("green", "red", "blue")
    bank = TextBank(names, torch.tensor([COLOURS[n] for n in names]) / 255, torch.ones(3, 3))
    encoder = RegionEncoder(ColourTowers(), crop_context=1.0)
    truth = GroundTruth(data, "a.json")
    regions = probe_regions(encoder, truth, tmp_path, names, views=("crop", "dense"), progress=False)
    groups = {"base": ["red"], "novel": ["blue"], "never": ["green"]}
    found = probe_accuracy(regions, bank, groups, ["hard", "off", "shuffled"])
    assert found["base"]["crop"]["hard"] == found["novel"]["dense_value"]["off"] == found["all"]["crop"]["off"] == 1.0
    assert found["never"]["crop"]["hard"] == -1.0
    assert probe_accuracy(regions, bank.text_shuffled(), groups, ["off"])["all"]["crop"]["off"] == 0.0
    with pytest.raises(UserError, match="differ from those of the probed regions"):
        probe_accuracy(regions, bank.select(names[::-1]), groups, ["off"])
    with pytest.raises(UserError, match="no box of the vocabulary"):
        probe_regions(encoder, GroundTruth({**data, "annotations": []}, "a.json"), tmp_path, names, progress=False)


def test_the_probe_scores_under_the_mask_mode_that_it_names():
    """One box whose class wins only with masks, by arithmetic: 0.71 to 0.45 with them, 0.50 to 0.95 without."""
    from smartclip_det.core.text_bank import TextBank

    masks = torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    bank = TextBank(("a", "b"), torch.tensor([[1.0, 0, 1], [1, 0.5, 0]]), masks)
    regions = ProbeRegions({"crop": torch.tensor([[1.0, 1, 0]])}, np.array([0]), ("a", "b"))
    for policy in (None, ScoringPolicy(mask_mode="off"), ScoringPolicy(mask_mode="hard")):
        found = probe_accuracy(regions, bank, {}, ["hard", "off"], policy)
        assert found["all"]["crop"] == {"hard": 1.0, "off": 0.0}


def test_the_probe_encodes_with_the_dense_mode_that_it_names(tmp_path):
    scene().save(tmp_path / "a.png")
    rows = [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": [0, 0, 32, 32],
            "area": 1024,
            "segmentation": [[0, 0, 32, 0, 32, 32, 0, 32]],
        }
    ]
    data = {
        "images": [{"id": 1, "file_name": "a.png", "width": 128, "height": 96}],
        "annotations": rows,
        "categories": [{"id": 1, "name": "red"}],
    }
    encoder = RegionEncoder(SmartCLIP.from_arch("SmartCLIP-tiny"))
    found = probe_regions(
        encoder,
        GroundTruth(data, "a.json"),
        tmp_path,
        ["red"],
        views=("dense", "mask"),
        dense_modes=("value", "vanilla"),
        poolings=("own", "unit"),
        progress=False,
    ).vectors
    mask = np.zeros((1, 96, 128), dtype=bool)
    mask[:, :32, :32] = True
    for mode in ("value", "vanilla"):
        for view in ("dense", "mask"):
            expected = encoder.vectors(scene(), BOXES[:1], view, masks=mask, dense_mode=mode)
            assert torch.allclose(found[f"{view}_{mode}"], expected, atol=1e-6)
            alike = encoder.vectors(scene(), BOXES[:1], view, masks=mask, dense_mode=mode, pooling="unit")
            assert torch.allclose(found[f"{view}_{mode}_unit"], alike, atol=1e-6)
            assert not torch.allclose(alike, expected, atol=1e-3)
    assert not torch.allclose(found["dense_value"], found["dense_vanilla"], atol=1e-3)


def test_cells_weigh_by_their_length_or_alike(monkeypatch):
    encoder = RegionEncoder(ColourTowers(), fit="squash")
    dense = torch.zeros(1, 3, 2, 2)
    # One cell is three times as long as the other in the box, and of another colour.
    dense[0, :, 0, 0], dense[0, :, 0, 1] = torch.tensor([3.0, 0, 0]), torch.tensor([0, 1.0, 0])
    monkeypatch.setattr(encoder, "dense_map", lambda image, mode=None: dense)
    image = Image.new("RGB", (40, 40))
    mask = np.zeros((1, 40, 40), dtype=bool)
    mask[:, :20] = True
    own, unit = (encoder.vectors(image, [[0, 0, 40, 20]], "mask", masks=mask, pooling=p)[0] for p in ("own", "unit"))
    assert own.tolist() == pytest.approx([1.5, 0.5, 0])
    assert unit.tolist() == pytest.approx([0.5, 0.5, 0])
    with pytest.raises(UserError, match="pooling"):
        encoder.vectors(image, [[0, 0, 40, 20]], "dense", pooling="mean")


def test_one_pass_gives_the_pooled_vector_and_the_dense_map():
    from smartclip_det.models.towers import SmartCLIP

    model = SmartCLIP.from_arch("SmartCLIP-tiny")
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    both = model.image_tower.features(pixels, dense_mode="value", pooled=True)
    assert isinstance(both, VisionOutput)
    assert torch.allclose(both.pooled, model.encode_image(pixels), atol=1e-6)
    assert torch.allclose(both.dense, model.encode_dense(pixels, "value"), atol=1e-6)
