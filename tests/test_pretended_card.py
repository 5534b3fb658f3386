"""Every family on a simulated GPU: nothing that a GPU would reject, and few synchronisations with the host.

Limits count waits caused by lines of this package, in a step after the first; waits inside MMEngine and MMDetection are
not counted. Each limit has a comment with its reason.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement, InstanceData
from PIL import Image

from smartclip_det.datasets.caption_batch import caption_batch
from smartclip_det.engine.finite_guard import FiniteGuardHook
from smartclip_det.models.alignment import SmartCLIPAlignment
from smartclip_det.models.grounding.referring import SmartCLIPReferring
from smartclip_det.models.regions import RegionEncoder
from smartclip_det.models.vocabulary import build_bank
from tests.pretended import PretendedCard

TOWERS = {"arch": "SmartCLIP-tiny", "seed": 0}


def watched(card, step, times=1):
    """Waits of the second run of a step; the first may initialise state."""
    step()
    with card.watch() as seen:
        for _ in range(times):
            step()
    assert not seen.faults, str(seen)
    return seen


def training(model, batch, **optimizer):
    """A step as in MMEngine's loop with :class:`FiniteGuardHook`, which makes logged values Python numbers."""
    wrapper = build_optim_wrapper(model, {"optimizer": {"type": "AdamW", "lr": 1e-4, **optimizer}})
    runner = SimpleNamespace(model=model, optim_wrapper=wrapper, iter=0, rank=0, work_dir="absent")
    guard = FiniteGuardHook()
    guard.before_train(runner)

    def step():
        given = batch()
        guard.before_train_iter(runner, 0, given)
        logs = model.train_step(given, wrapper)
        guard.after_train_iter(runner, 0, given, logs)
        assert all(isinstance(v, float) for v in logs.values()), logs
        assert np.isfinite(list(logs.values())).all()

    return step


# --- the mode itself --------------------------------------------------------------------------------------------------


def planted(x, host):
    """Name, code, and the expected report: ``fault``, ``wait`` or nothing."""
    index = torch.tensor([0, 2])
    yield "mixed places", lambda: x + host, "fault"
    yield "a host's scalar", lambda: x + torch.tensor(2.0), ""
    yield "numpy", lambda: x.numpy(), "fault"
    yield "numpy of what is made of it", lambda: np.asarray(x * 2), "fault"
    yield "cat of places", lambda: torch.cat([x, host]), "fault"
    yield "matmul of places", lambda: x @ host.t(), "fault"
    yield "a card's index on the host", lambda: host[index.to("cuda", non_blocking=True)], "fault"
    yield "item", lambda: x.sum().item(), "wait"
    yield "float", lambda: float(x.max()), "wait"
    yield "branch", lambda: bool((x > 0).any()), "wait"
    yield "tolist", lambda: x.tolist(), "wait"
    yield "boolean index", lambda: x[x > 0], "wait"
    yield "put by flags", lambda: x.clone().__setitem__(x > 0, x[0, 0]), ""
    yield "nonzero", lambda: (x > 0).nonzero(), "wait"
    yield "unique", lambda: x.unique(), "wait"
    yield "host index", lambda: x[index], "wait"
    yield "a list", lambda: x[[0, 1]], "wait"
    yield "copy to the host", lambda: x.cpu(), "wait"
    yield "copy to the card", lambda: host.to("cuda"), "wait"
    yield "copy beside", lambda: host.to("cuda", non_blocking=True), ""
    yield "constant", lambda: torch.tensor([1.0, 2.0], device=x.device), "wait"
    yield "new_tensor", lambda: x.new_tensor([1.0]), "wait"
    yield "filled", lambda: torch.full((3,), 2.0, device=x.device) + x, ""
    yield "new_full", lambda: x * x.new_full((), 3.0), ""
    yield "made like it", lambda: x + torch.zeros_like(x), ""
    yield "arange", lambda: x[torch.arange(2, device=x.device)], ""
    yield "svd", lambda: torch.linalg.svd(x), "wait"
    yield (
        "repeats of the card",
        lambda: x.repeat_interleave(torch.tensor([1, 2, 1]).to("cuda", non_blocking=True), 0),
        "wait",
    )
    yield "repeats of the host", lambda: x.repeat_interleave(2, 0), ""
    yield "deepcopy", lambda: copy.deepcopy(x) + x, ""
    yield "back and forth", lambda: x.cpu().numpy(), "wait"


def test_planted_faults_and_waits_are_found_and_nothing_else_is():
    with PretendedCard() as card:
        x, host = torch.randn(3, 3).to("cuda"), torch.randn(3, 3)
        assert x.is_cuda
        assert x.device.type == (x * 2).device.type == "cuda"
        assert not host.is_cuda
        for name, act, kind in planted(x, host):
            with card.watch() as seen:
                act()
            assert (bool(seen.faults), bool(seen.waits)) == (kind == "fault", kind == "wait"), (name, str(seen))
    assert host.device.type == "cpu"
    assert torch.zeros(2, device="cpu").tolist() == [0, 0]


def test_arithmetic_is_that_of_the_cpu_and_lines_are_told():
    from smartclip_det.core.similarity import masked_cosine

    torch.manual_seed(0)
    v, t, m = torch.randn(4, 8), torch.randn(3, 8), (torch.rand(3, 8) > 0.5).float()
    expected = masked_cosine(v, t, m)
    with PretendedCard() as card:
        got = masked_cosine(v.to("cuda"), t.to("cuda"), m.to("cuda"))
        with card.watch() as seen:
            masked_cosine(v.to("cuda"), t, m.to("cuda"))
        assert any("core/similarity.py:" in line for line in seen.faults)
        layer = torch.nn.Linear(8, 2).to("cuda")
        assert layer.weight.is_cuda
        layer(v.to("cuda")).sum().backward()
        assert layer.weight.grad.is_cuda
    assert torch.equal(got, expected)


# --- alignment --------------------------------------------------------------------------------------------------------


def caption_rows(count):
    g = torch.Generator().manual_seed(0)
    for n in range(count):
        texts = [[49406, *range(320, 324 + n % 5), 49407] for _ in range(2)]
        facts = {
            "img_id": n,
            "drawn_captions": ["a", "b"],
            "drawn_tokens": texts,
            "region_texts": [["cup"], ["dog"]][n % 2],
            "region_boxes": [[4.0, 4, 40, 50]],
        }
        pixels = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=g)
        yield {"inputs": pixels, "data_samples": BaseDataElement(metainfo=facts)}


ALIGNMENT = {
    # Logged numbers, fetched once.
    "recipe": ({}, 1),
    "soft": ({"loss": {"mask_mode": "soft"}}, 1),
    "clip": ({"loss": {"mask_mode": "off"}}, 1),
    "sigmoid": ({"loss": {"form": "sigmoid", "scale": "learned"}}, 1),
    "micro-batches": ({"micro_batch": 2}, 1),
    "text chunks": ({"text_chunks": 3}, 1),
    "distillation": ({"distillation": {"images": 2}, "dense_weight": 0.5}, 1),
    "main components": ({"component_matching": 2}, 1),
    # Texts of boxes are strings: ids, order and its inverse, boxes and targets are copied to the card.
    "regions": ({"region_contrast": {"images": 4}}, 6),
}


@pytest.mark.parametrize("name", ALIGNMENT)
def test_alignment(name):
    options, ceiling = ALIGNMENT[name]
    rows = list(caption_rows(6))
    with PretendedCard() as card:
        model = SmartCLIPAlignment(TOWERS, **options).to("cuda").train()
        assert model.towers.logit_scale.is_cuda
        seen = watched(card, training(model, lambda: caption_batch(rows)))
    assert seen.own_waits <= ceiling, str(seen)


def test_validation_of_alignment_waits_for_results_and_not_for_vocabularies():
    facts = {"captions": {"long": ["a red cup"], "short": ["a cup", "a dog"]}, "present": {}}
    with PretendedCard() as card:
        model = SmartCLIPAlignment(TOWERS).to("cuda").eval()
        waits = []
        for banks in (1, 3):
            model.set_text_banks(
                {f"v{n}": build_bank(model.towers, ["cup", "dog"], progress=False) for n in range(banks)}
            )
            pixels = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)

            def step(pixels=pixels):
                samples = [BaseDataElement(metainfo=facts) for _ in range(2)]
                model.val_step({"inputs": pixels, "data_samples": samples})

            seen = watched(card, step)
            waits.append(seen.own_waits)
    # Vectors of images and texts, and scores for each vocabulary and mask mode, are copied to the host.
    assert waits[1] - waits[0] <= 2 * 5, str(seen)
    assert waits[0] <= 14, str(seen)


# --- detectors --------------------------------------------------------------------------------------------------------


def detection_batch(boxes=2):
    from mmdet.structures import DetDataSample

    samples = []
    for n in range(2):
        s = DetDataSample(
            metainfo={
                "img_shape": (64, 64),
                "ori_shape": (64, 64),
                "pad_shape": (64, 64),
                "scale_factor": (1.0, 1.0),
                "img_id": n,
                "batch_input_shape": (64, 64),
            }
        )
        s.gt_instances = InstanceData(
            bboxes=torch.tensor([[4.0, 4, 40, 40], [20.0, 10, 60, 50]])[:boxes], labels=torch.tensor([0, 1])[:boxes]
        )
        s.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        samples.append(s)
    pixels = [
        torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
        for n in (0, 1)
    ]
    return {"inputs": pixels, "data_samples": samples}


@pytest.fixture(scope="module")
def names():
    from tests.detection.tiny import encoder

    return build_bank(encoder(), ["cup", "dog", "bird"], progress=False)


@pytest.mark.parametrize("seen_names", [["cup", "dog", "bird"], ["cup", "dog"]])
def test_two_stage(names, seen_names):
    from tests.detection.tiny import build, smoke_config

    detector = build(smoke_config())
    with PretendedCard() as card:
        detector.to("cuda").set_text_bank(names.with_seen(seen_names))
        seen = watched(card, training(detector.train(), detection_batch))
        # Logged numbers; with unseen classes, whether a box belongs to one.
        assert seen.own_waits <= (1 if len(seen_names) == 3 else 2), str(seen)
        found = watched(card, lambda: detector.eval().test_step(detection_batch()))
        # Scale factors and, image by image, candidates over the threshold, NMS and the labels' names.
        assert found.own_waits <= 2 * 12, str(found)


def test_one_stage(names):
    from mmdet.registry import MODELS

    from smartclip_det.engine.config import load_config
    from tests.conftest import REPO

    config = load_config(REPO / "configs/toy/open-vocab-owl_smartclip-toy_toy.py", {"towers": TOWERS}).model
    config.backbone.update(out_indices=(3,))
    config.bbox_head.update(in_channels=64, embed_dim=64)
    init_default_scope("mmdet")
    detector = MODELS.build(config)
    with PretendedCard() as card:
        detector.to("cuda").set_text_bank(names.with_seen(["cup", "dog"]))
        seen = watched(card, training(detector.train(), detection_batch))
        # Logged numbers, unseen boxes, the frame's size, and for each image which tokens the assigner matched.
        assert seen.own_waits <= 3 + 2, str(seen)
        found = watched(card, lambda: detector.eval().test_step(detection_batch()))
        # The frame's size; for each image the selection by threshold, its scale factor, the label names.
        assert found.own_waits <= 1 + 2 * 4, str(found)


def referring_batch(sentences):
    texts = [f"cup number {n}" for n in range(sentences)]
    boxes = [torch.tensor([[4.0, 4, 40, 40], [20.0, 8, 60, 60]])[: n % 3] for n in range(sentences)]
    facts = {
        "sentences": texts,
        "sentence_ids": list(range(sentences)),
        "scale": (1.0, 1.0),
        "ori_shape": (64, 64),
        "boxes": boxes,
    }
    pixels = [torch.zeros(3, 64, 64, dtype=torch.uint8) for _ in range(2)]
    return {"inputs": pixels, "data_samples": [BaseDataElement(metainfo=copy.deepcopy(facts)) for _ in pixels]}


@pytest.mark.parametrize("queries", [1, 3])
def test_referring_waits_do_not_grow_with_sentences(queries):
    head = {"dim": 32, "layers": 1, "heads": 2, "feedforward": 64, "dropout": 0.0, "queries": queries}
    counts = {"train": [], "predict": []}
    with PretendedCard() as card:
        model = SmartCLIPReferring(TOWERS, head, image_size=64, out_indices=(1, 3)).to("cuda")
        for sentences in (3, 9):
            seen = watched(card, training(model.train(), lambda n=sentences: referring_batch(n)))
            counts["train"].append(seen.own_waits)
            found = watched(card, lambda n=sentences: model.eval().test_step(referring_batch(n)))
            counts["predict"].append(found.own_waits)
    assert counts["train"][0] == counts["train"][1], str(seen)
    assert counts["predict"][0] == counts["predict"][1], str(found)
    # Logged numbers; which image a sentence is about; lengths; boxes; costs to the host and pairs back.
    assert counts["train"][0] <= 6, str(seen)
    # Which image, lengths; all boxes to the host.
    assert counts["predict"][0] <= 3, str(found)


def test_regions():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    boxes = [[4, 4, 40, 40], [10, 10, 70, 50], [0, 0, 20, 20]]
    with PretendedCard() as card:
        from smartclip_det.models.towers import SmartCLIP

        encoder = RegionEncoder(SmartCLIP.from_arch("SmartCLIP-tiny").to("cuda"), dense_size=64)
        for view in ("crop", "dense"):
            seen = watched(card, lambda view=view: encoder.vectors(image.copy(), boxes, view))
            # Pixels to the card, boxes to the card, vectors to the host.
            assert seen.own_waits <= 3, str(seen)


def test_grounding_dino(tmp_path_factory):
    pytest.importorskip("transformers", reason="Grounding DINO's text side needs transformers")
    from tests.detection import test_grounding_dino as dino

    model = dino.build(dino.bert.__wrapped__(tmp_path_factory), **{"model.trained": "all"})

    def batch(positive=True):
        images, samples = dino.batch(["red cup .", "dog ."])
        for s, end in zip(samples, (7, 3), strict=True):
            if positive:
                s.set_metainfo({"tokens_positive": {0: [[0, end]]}})
        return {"inputs": list(images), "data_samples": samples}

    with PretendedCard() as card:
        model.to("cuda")
        seen = watched(card, training(model.train(), batch))
        # The logged numbers, and the sentences' ids.
        assert seen.own_waits <= 2, str(seen)
        found = watched(card, lambda: model.eval().test_step(batch(positive=False)))
        assert found.own_waits <= 2, str(found)
