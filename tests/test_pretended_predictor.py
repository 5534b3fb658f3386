"""The predictor on a simulated GPU: nothing a GPU would reject, and waits independent of the number of texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from smartclip_det import Predictor
from smartclip_det.apis.families.training_free import TrainingFree
from smartclip_det.models.towers import SmartCLIP
from tests.apis.test_training_free import GridBoxes
from tests.conftest import REPO
from tests.pretended import PretendedCard

CONFIGS = {
    "one-stage": "open-vocab-owl_smartclip-toy_toy.py",
    "two-stage": "open-vocab-rcnn_smartclip-toy_toy.py",
    "grounding head": "referring_smartclip-toy_toy.py",
}
TEXTS = ["a red cup", "a dog", "a blue bird"]
EXPRESSIONS = ["the red cup", "the dog left of the cup", "the leftmost bird"]


def build(kind):
    """A predictor as built with ``device="cuda"``."""
    torch.manual_seed(0)
    if kind == "towers alone":
        towers = SmartCLIP.from_arch("SmartCLIP-tiny").to("cuda")
        return Predictor(TrainingFree(towers, GridBoxes()), parser="rules")
    predictor = Predictor.from_config(
        REPO / "configs/toy" / CONFIGS[kind], use_cache=False, parser="rules", device="cpu"
    )
    for part in (getattr(predictor.family, name, None) for name in ("detector", "model", "towers")):
        if part is not None:
            part.to("cuda")
    return predictor


#: Waits of our own lines, for any number of texts: while an image is encoded (pixels, boxes and scales go to the card),
#: detecting and grounding. Both encode texts anew: rows to the host, where banks are cached, and the bank back (11 of the
#: waits). Detection then asks how many pairs reach the threshold and brings three columns to the host; grounding brings
#: scores and boxes.
CEILINGS = {
    "towers alone": (4, 14, 12),
    "one-stage": (3, 14, 12),
    "two-stage": (1, 18, 16),
    "grounding head": (1, 12, 3),
}


@pytest.mark.parametrize("kind", CEILINGS)
def test_waits_do_not_grow_with_texts(kind):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8))
    with PretendedCard() as card:
        predictor = build(kind)
        assert predictor.device.type == "cuda"
        predictor.set_image(image)
        predictor.detect(TEXTS)
        with card.watch() as encoding:
            predictor.set_image(image)
        seen = {}
        for name, ask in (
            ("detect", lambda n: predictor.detect(TEXTS[:n], max_detections=5)),
            ("ground", lambda n: predictor.ground(EXPRESSIONS[:n], top_k=2)),
        ):
            for count in (1, 3):
                with card.watch() as seen[name, count]:
                    assert len(ask(count))
    for what, report in {"encode": encoding, **seen}.items():
        assert not report.faults, f"{what}: {report}"
    for name in ("detect", "ground"):
        few, many = seen[name, 1], seen[name, 3]
        assert few.own_waits == many.own_waits, f"{name}: {few}\n\nwith three:\n{many}"
    found = tuple(r.own_waits for r in (encoding, seen["detect", 3], seen["ground", 3]))
    assert all(f <= most for f, most in zip(found, CEILINGS[kind], strict=True)), (found, str(encoding), str(seen))
