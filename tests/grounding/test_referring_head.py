"""The trained grounding head: zero-initialised masks, set losses by hand, frozen towers, overfitting on photographs."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement
from PIL import Image
from torch.nn import functional

from smartclip_det.apis import Predictor
from smartclip_det.apis.families.referring import CHUNK, Referring
from smartclip_det.core.errors import UserError
from smartclip_det.core.similarity import masked_cosine, paired_masked_cosine
from smartclip_det.datasets.referring import ReferringDataset
from smartclip_det.formats.expressions.jsonl import write_expressions
from smartclip_det.formats.expressions.loading import load_expressions
from smartclip_det.formats.expressions.record import Expression
from smartclip_det.models.grounding.fusion_head import FusionHead, GroundingOutput, ImageTokens, TextTokens
from smartclip_det.models.grounding.referring import SmartCLIPReferring
from smartclip_det.models.grounding.set_losses import box_map, dice_loss, grounding_losses, match
from smartclip_det.protocols.referring_metric import ReferringMetric

TOWERS = {"arch": "SmartCLIP-tiny", "seed": 0}
SMALL = {"dim": 32, "layers": 1, "heads": 2, "feedforward": 64, "dropout": 0.0}


def build(seed=0, **options):
    torch.manual_seed(seed)
    head = {**SMALL, **options.pop("head", {})}
    return SmartCLIPReferring(TOWERS, head, image_size=64, out_indices=(1, 3), **options)


def sample(sentences, boxes, scale=(1.0, 1.0), shape=(64, 64), first=0):
    return BaseDataElement(
        metainfo={
            "sentences": sentences,
            "sentence_ids": list(range(first, first + len(sentences))),
            "scale": scale,
            "ori_shape": shape,
            "boxes": [torch.tensor(b, dtype=torch.float32).view(-1, 4) for b in boxes],
        }
    )


def pixels(count, seed=0):
    return list(
        torch.randint(0, 256, (count, 3, 64, 64), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    )


def test_paired_cosine_is_the_diagonal_of_the_full_one():
    g = torch.Generator().manual_seed(0)
    vectors, texts, masks = (
        torch.randn(3, 5, 8, generator=g),
        torch.randn(3, 8, generator=g),
        (torch.rand(3, 8, generator=g) > 0.5).float(),
    )
    for m in (None, masks):
        found = paired_masked_cosine(vectors, texts, m)
        for k in range(3):
            assert torch.allclose(found[k], masked_cosine(vectors[k], texts, m)[:, k], atol=1e-6)
    assert paired_masked_cosine(torch.zeros(1, 2, 4), torch.ones(1, 4)).tolist() == [[0, 0]]
    leaf = torch.zeros(1, 2, 4, requires_grad=True)
    paired_masked_cosine(leaf, torch.ones(1, 4)).sum().backward()
    assert torch.isfinite(leaf.grad).all()


def test_a_new_head_equals_the_one_without_masks():
    """Gate, map channel and refinement are zero-initialised."""
    samples = [sample(["a red cup", "a dog"], [[[0, 0, 9, 9]], []]), sample(["a cat"], [[[0, 0, 9, 9]]])]
    outputs = []
    for options in ({"head": {"gate": True}}, {"head": {"gate": False}}, {"mask_mode": "off"}, {"mask_mode": "random"}):
        model = build(**options).eval()
        if outputs:
            model.head.load_state_dict(outputs[0][1], strict=False)
        outputs.append((model(pixels(2), samples), model.head.state_dict()))
    for found, _ in outputs[1:]:
        assert torch.equal(found.boxes, outputs[0][0].boxes)
        assert torch.equal(found.exists, outputs[0][0].exists)
    assert not torch.equal(outputs[2][0].similarity, outputs[0][0].similarity)
    model = build().eval()
    towers = model.towers
    dense = functional.normalize(model.image_tokens(torch.stack(pixels(2))).dense, dim=1)
    bank = towers.encode_text(["a dog"])
    cosine = masked_cosine(dense[0].flatten(1).t(), bank.embeds, bank.masks).view(8, 8)
    assert torch.allclose(outputs[0][0].similarity[1], 10 * cosine - 3, atol=1e-4)


def test_sentences_of_an_image_share_its_encoding_and_do_not_see_each_other():
    model = build(head={"queries": 3}).eval()
    calls = []
    original = model.towers.image_tower.features
    model.towers.image_tower.features = lambda images, **options: (
        calls.append(len(images)) or original(images, **options)
    )
    texts = ["a red cup", "a dog on the left side of a cat", "a cat"]
    together = model(pixels(1), [sample(texts, [[]] * 3)])
    assert calls == [1]
    for k, text in enumerate(texts):
        alone = model(pixels(1), [sample([text], [[]])])
        assert torch.allclose(alone.boxes[0], together.boxes[k], atol=1e-5)
        assert torch.allclose(alone.similarity[0], together.similarity[k], atol=1e-4)


def test_matching_and_losses_by_hand():
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2]]])
    output = GroundingOutput(boxes, torch.tensor([[0.0, 1.0]]), torch.zeros(1, 4, 4), None)
    target = torch.tensor([[0.25, 0.2, 0.2, 0.2]])
    told = match(output, [target], {"exists": 1.0, "bbox": 5.0, "giou": 2.0})
    assert [t.tolist() for t in told] == [[0], [1], [0]]
    losses = grounding_losses(output, [target], {"map_focal": 0.0, "map_dice": 0.0})
    exists = (math.log(2) + math.log(1 + math.exp(-1))) / 2
    assert losses["loss_exists"].item() == pytest.approx(exists, abs=1e-6)
    assert losses["loss_bbox"].item() == pytest.approx(5 * 0.05, abs=1e-6)
    overlap, union, hull = 0.15 * 0.2, 2 * 0.04 - 0.03, 0.25 * 0.2
    assert losses["loss_giou"].item() == pytest.approx(2 * (1 - overlap / union + (hull - union) / hull), abs=1e-5)
    assert set(losses) == {"loss_exists", "loss_bbox", "loss_giou"}
    none = grounding_losses(output, [torch.zeros(0, 4)])
    assert none["loss_bbox"] == none["loss_giou"] == 0
    assert none["loss_exists"].item() == pytest.approx((math.log(2) + math.log(1 + math.e)) / 2, abs=1e-6)
    bare = build(head={"gate": False}, loss_weights={"map_focal": 0.0, "map_dice": 0.0}).train()
    sum(bare(pixels(1), [sample(["a cup"], [[]])], mode="loss").values()).backward()
    assert all(p.grad is not None for p in bare.parameters())
    many = grounding_losses(output, [target.repeat(3, 1)])
    assert torch.isfinite(sum(many.values()))
    with pytest.raises(UserError, match="loss weight"):
        grounding_losses(output, [target], {"box": 1.0})


def test_the_map_of_boxes_is_the_covered_share_of_cells():
    found = box_map([torch.tensor([[0.5, 0.5, 0.5, 1.0], [0.5, 0.5, 0.5, 1.0]]), torch.zeros(0, 4)], (2, 4))
    assert found[0].tolist() == [[0, 1, 1, 0]] * 2
    assert not found[1].any()
    assert box_map([torch.tensor([[0.25, 0.25, 0.25, 0.25]])], (2, 2))[0].tolist() == [[0.0625 * 4, 0], [0, 0]]
    assert dice_loss(torch.full((1, 3), 100.0), torch.ones(1, 3)).item() == pytest.approx(0, abs=1e-6)


def test_only_the_head_is_trained_and_saved_and_other_towers_are_refused(tmp_path):
    model = build(head={"queries": 2, "mask_branch": True}).train()
    assert not any("tower" in n for n, _ in model.named_parameters())
    batch = [sample(["a red cup", "no such thing"], [[[0, 0, 30, 30]], []])]
    batch[0].set_metainfo({"masks": torch.zeros(2, 64, 64, dtype=torch.bool)})
    losses = model(pixels(1), batch, mode="loss")
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None for p in model.towers.parameters())
    state = model.state_dict()
    assert all(k.startswith(("head.", "source._extra_state")) for k in state)
    build(head={"queries": 2, "mask_branch": True}).load_state_dict(state)
    torch.manual_seed(0)
    other = SmartCLIPReferring(
        {**TOWERS, "seed": 1}, {**SMALL, "queries": 2, "mask_branch": True}, image_size=64, out_indices=(1, 3)
    )
    with pytest.raises(UserError, match="trained with towers"):
        other.load_state_dict(state)


def test_predictions_are_in_the_pixels_of_the_image():
    model = build(head={"queries": 2, "mask_branch": True}).eval()
    batch = [sample(["a red cup", "a dog"], [[], []], scale=(0.5, 0.5), shape=(100, 128), first=7)]
    found = model(pixels(1), batch, mode="predict")[0].grounded
    assert [f["id"] for f in found] == [7, 8]
    raw = model(pixels(1), batch)
    best = raw.exists[0].argmax()
    x, y, w, h = (raw.boxes[0, best] * 128).tolist()
    expected = [max(0, x - w / 2), max(0, y - h / 2), min(128, x + w / 2), min(100, y + h / 2)]
    assert found[0]["boxes"][0] == pytest.approx(expected, abs=1e-3)
    assert found[0]["scores"][0] == pytest.approx(raw.exists[0, best].sigmoid().item(), abs=1e-6)
    assert found[0]["mask"].shape == (100, 128)


@pytest.mark.parametrize("fit", ["pad", "squash"])
def test_the_predictor_says_what_a_test_run_says(shared, tmp_path, fit):
    source = shared / "coco_mini_train"
    photo = sorted((source / "images").iterdir())[0]
    with Image.open(photo) as opened:
        size = opened.size
    texts = [f"the {n} things on the left" for n in range(CHUNK + 2)]
    rows = [Expression(n, 1, photo.name, t, ((0, 0, 9, 9),), *size, split="val") for n, t in enumerate(texts)]
    write_expressions(tmp_path / "e.jsonl", rows)
    data = ReferringDataset(
        ann_file=str(tmp_path / "e.jsonl"),
        images=str(source / "images"),
        split="val",
        fit=fit,
        image_size=64,
        test_mode=True,
    )
    model = build(head={"queries": 3, "mask_branch": True}).eval()
    one = data[0]
    with torch.no_grad():
        run = model([one["inputs"]], [one["data_samples"]], mode="predict")[0].grounded
    predictor = Predictor(Referring(model, fit))
    encoded = predictor.set_image(photo)
    model.towers.image_tower.features = None  # another encoding would fail
    found = predictor.ground(texts, top_k=10)
    for mine, theirs in zip(found, run, strict=True):
        assert mine.boxes == pytest.approx(np.array(theirs["boxes"]), abs=1e-3)
        assert mine.scores == pytest.approx(np.array(theirs["scores"]), abs=1e-5)
    assert np.array_equal(predictor.segment(texts[-1]), run[-1]["mask"])
    best = predictor.ground(texts[3])
    assert (len(best), best.label_names) == (1, [texts[3]])
    assert len(predictor.ground(texts[3], threshold=float(best.scores[0]) + 1e-4)) == 0
    tokens, told = encoded.tokens, model.text_tokens(texts[:1])
    cell = masked_cosine(tokens.dense[0, :, 1, 2][None], told.embeds, told.masks)
    explained = predictor.explain(texts[0])
    assert explained.similarity[1, 2] == pytest.approx(cell.item(), abs=1e-6)
    assert explained.similarity.shape == ((8, 8) if fit == "squash" else (round(8 * size[1] / size[0]), 8))


@pytest.mark.parametrize(("fit", "on_square"), [("squash", [6.4, 32, 38.4, 64]), ("pad", [6.4, 12.5, 38.4, 25])])
def test_boxes_and_masks_come_back_to_a_wide_picture(tmp_path, monkeypatch, fit, on_square):
    """From the image to the square, through an oracle head, and back: by the data set and the predictor."""
    Image.new("RGB", (100, 40)).save(tmp_path / "0.png")
    outline = [10, 20, 60, 20, 60, 40, 10, 40]
    write_expressions(
        tmp_path / "e.jsonl", [Expression(1, 0, "0.png", "a cup", ((10.0, 20, 60, 40),), 100, 40, masks=([outline],))]
    )
    data = ReferringDataset("e.jsonl", data_root=str(tmp_path), image_size=64, fit=fit, with_masks=True, test_mode=True)
    facts = data[0]["data_samples"]
    assert facts.boxes[0][0].tolist() == pytest.approx(on_square)
    x1, y1, x2, y2 = facts.boxes[0][0].tolist()
    # The second query's box leaves the square on all sides.
    boxes = torch.tensor([[[(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], [32, 32, 128, 128]]]) / 64
    answer = GroundingOutput(boxes, torch.tensor([[2.0, 1.0]]), torch.zeros(1, 8, 8), facts.masks.float() * 20 - 10)
    model = build(head={"queries": 2, "mask_branch": True}).eval()
    monkeypatch.setattr(model.head, "forward", lambda *_: answer)
    with torch.no_grad():
        told = model([data[0]["inputs"]], [facts], mode="predict")[0].grounded[0]
    predictor = Predictor(Referring(model, fit))
    predictor.set_image(tmp_path / "0.png")
    mask = np.zeros((40, 100), dtype=bool)
    mask[20:, 10:60] = True
    for found in (told["boxes"], predictor.ground("a cup", top_k=2).boxes.tolist()):
        assert found[0] == pytest.approx([10, 20, 60, 40], abs=1e-4)
        assert found[1] == [0, 0, 100, 40]
    for found in (told["mask"], predictor.segment("a cup")):
        assert (found & mask).sum() / (found | mask).sum() > 0.9


def test_a_predictor_without_image_masks_or_text_says_so(tmp_path):
    predictor = Predictor(Referring(build()))
    with pytest.raises(UserError, match=r"Call set_image\(image\)"):
        predictor.ground("a dog")
    predictor.set_image(np.zeros((40, 60, 3), dtype=np.uint8))
    with pytest.raises(UserError, match=r"mask_branch=True"):
        predictor.segment("a dog")
    for bad, message in ((" ", "is empty"), ([], "No expression"), ("dog " * 300, "token")):
        with pytest.raises(UserError, match=message):
            predictor.ground(bad)
    with pytest.raises(UserError, match="takes the whole expression"):
        predictor.ground("a dog", reading="chunks")
    with pytest.raises(UserError, match="has no proposals"):
        predictor.proposals()


def test_kept_sentences_depend_on_neither_precision_nor_device():
    model = build().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first = model.text_tokens(["a red cup"])
    model._texts.clear()
    again = model.text_tokens(["a red cup"])
    assert torch.equal(first.states, again.states)
    assert torch.equal(first.embeds, again.embeds)
    model.double()
    assert not model._texts


def test_bad_input_is_told():
    with pytest.raises(UserError, match="multiple of the patch size"):
        SmartCLIPReferring(TOWERS, SMALL, image_size=60)
    with pytest.raises(UserError, match="mask_mode"):
        build(mask_mode="shuffled")
    with pytest.raises(UserError, match="multiple of heads"):
        build(head={"heads": 5})
    with pytest.raises(UserError, match="expression is empty"):
        build()(pixels(1), [sample([" "], [[]])])
    with pytest.raises(UserError, match="limit"):
        build()(pixels(1), [sample(["a red cup and " * 60], [[]])])
    head = FusionHead(channels=4, text_width=4, embed_dim=4, grid=2, text_length=3, **SMALL)
    texts = TextTokens(torch.zeros(1, 3, 4), torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 4), None)
    with pytest.raises(UserError, match="2 x 2 patches"):
        head(ImageTokens(torch.zeros(1, 4, 3, 3), torch.zeros(1, 4, 3, 3)), texts, torch.zeros(1, dtype=torch.long))


def real_expressions(shared, folder):
    """Every sentence of the samples whose photograph is available: RefCOCO (two splits) and RefCOCOg."""
    test_a, google, first = (shared / n for n in ("refcoco_testA_slice", "refcocog_google_val", "refcoco_ref0"))
    rows = [(test_a / "images" / e.file_name, e.sentence, e.boxes[0]) for e in load_expressions(test_a / "refs(unc).p")]
    for t in json.loads((google / "triples_with_box.json").read_text()):
        x, y, w, h = t["bbox"]
        rows.append((google / "images" / t["file_name"], t["refexp"], (x, y, x + w, y + h)))
    record = json.loads((first / "refs_unc_records.json").read_text())[0]
    x, y, w, h = json.loads((first / "box.json").read_text())["bbox"]
    photograph = first / "images/COCO_train2014_000000581857.jpg"
    rows += [(photograph, s["sent"], (x, y, x + w, y + h)) for s in record["sentences"]]
    kept = [r for r in rows if r[0].is_file()]
    write_expressions(
        folder / "real.jsonl",
        [Expression(n, str(image), str(image), sentence, (box,)) for n, (image, sentence, box) in enumerate(kept)],
    )
    return len(kept)


@pytest.mark.slow
def test_real_expressions_are_learned_by_heart(shared, tmp_path):
    """Overfitting: Acc@0.5 of 0.9 on the training expressions of real photographs."""
    count = real_expressions(shared, tmp_path)
    assert count >= 20
    data = ReferringDataset("real.jsonl", "/", str(tmp_path), image_size=128, test_mode=True)
    torch.manual_seed(0)
    head = {"dim": 64, "layers": 2, "heads": 4, "feedforward": 128, "dropout": 0.0}
    model = SmartCLIPReferring(TOWERS, head, image_size=128, out_indices=(1, 3)).train()
    rows = [data[i] for i in range(len(data))]
    inputs, samples = [r["inputs"] for r in rows], [r["data_samples"] for r in rows]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        sum(model(inputs, samples, mode="loss").values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    metric = ReferringMetric("real.jsonl", data_root=str(tmp_path))
    with torch.no_grad():
        found = model.eval()(inputs, samples, mode="predict")
    metric.process({}, [{"grounded": s.grounded} for s in found])
    scores = metric.compute_metrics(metric.results)
    assert scores["acc50"] >= 0.9, scores
