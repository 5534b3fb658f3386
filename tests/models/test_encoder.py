"""The check of encoders of another library: what it accepts, and that each mistake is named."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from smartclip_det import Predictor
from smartclip_det.core.errors import UserError
from smartclip_det.models.towers import SmartCLIP
from smartclip_det.models.towers.encoder import MEMBERS, check_encoder
from smartclip_det.models.towers.smartclip import TextFeatures


class Letters(torch.nn.Module):
    """A small encoder of no family: one convolution, and a bag of letters."""

    dense_modes = ("value",)
    checkpoint_hash = "0123456789abcdef"

    def __init__(self, fixed_size=True):
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(
            image_size=32, patch_size=16, embed_dim=8, mask_pad="ignore", fixed_size=fixed_size
        )
        self.patches, self.letters = torch.nn.Conv2d(3, 8, 16, 16), torch.nn.Embedding(256, 8)
        self.logit_scale = torch.nn.Parameter(torch.tensor(3.0))

    def image_statistics(self):
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def encode_image(self, images):
        return self.patches(images).mean(dim=(2, 3))

    def encode_dense(self, images, dense_mode="value"):
        if self.config.fixed_size and images.shape[-1] != 32:
            raise RuntimeError("only 32 pixels")
        return self.patches(images)

    def tokenize(self, texts, *, truncate=False):
        return torch.tensor([list(t.encode()[:32].ljust(32)) for t in ([texts] if isinstance(texts, str) else texts)])

    def forward_text(self, tokens):
        states = self.letters(tokens)
        return TextFeatures(states.mean(dim=1), states, None)

    def mask_logits(self, states, keep):
        return None

    def provenance(self):
        return {"checkpoint_hash": self.checkpoint_hash}


def test_encoders_of_this_package_and_others_pass():
    for encoder in (SmartCLIP.from_arch("SmartCLIP-tiny", seed=0), Letters(), Letters(fixed_size=False)):
        check_encoder(encoder.eval())


@pytest.mark.parametrize("size", [0, 64])
def test_an_encoder_of_fixed_size_is_given_its_own_size(size):
    """By default dense maps are computed at three times the input size, which some encoders refuse."""
    options = {"dense_size": size} if size else {}
    predictor = Predictor.from_pretrained(Letters(), boxes=None, use_cache=False, **options)
    pixels, boxes = torch.zeros(40, 40, 3, dtype=torch.uint8).numpy(), [[0, 0, 20, 20], [10, 10, 40, 40]]
    if size:
        with pytest.raises(RuntimeError, match="only 32 pixels"):
            predictor.set_image(pixels, boxes=boxes)
        return
    predictor.set_image(pixels, boxes=boxes)
    assert predictor.protocol["dense_size"] == 32
    assert set(predictor.detect(["a cup", "a dog"]).label_names) == {"a cup", "a dog"}
    assert Predictor.from_pretrained(Letters(fixed_size=False), boxes=None).protocol["dense_size"] == 96


@pytest.mark.parametrize("given", [SimpleNamespace(), None, 3])
def test_other_objects_are_refused_with_what_they_lack(given):
    with pytest.raises(UserError, match=f"is not an encoder: it lacks {', '.join(MEMBERS)}"):
        Predictor.from_pretrained(given, boxes=None)
    halfway = Letters()
    del halfway.config.embed_dim
    with pytest.raises(UserError, match=r"lacks config\.embed_dim\."):
        Predictor.from_pretrained(halfway, boxes=None)


@pytest.mark.parametrize(
    ("member", "wrong", "says"),
    [
        ("dense_modes", ("plain",), "must contain 'value'"),
        ("image_statistics", lambda: ((0.5,), (0.5,)), "two triples"),
        ("encode_image", lambda images: torch.ones(2, 7), r"\[2, 8\]; it returned torch.float32 \[2, 7\]"),
        ("encode_image", lambda images: torch.eye(8)[:2], "must not normalise"),
        ("encode_dense", lambda images, mode: torch.ones(2, 4, 8), r"\[2, 8, 2, 2\]"),
        ("tokenize", lambda texts: [[1], [2]], "integers; for two texts it returned list"),
        ("tokenize", lambda texts: torch.ones(2, 4), r"it returned torch.float32 \[2, 4\]"),
        ("forward_text", lambda tokens: (torch.ones(2, 8), None, None), "tuple lacks embeds, states, mask_logits"),
        ("forward_text", lambda tokens: TextFeatures(torch.ones(2, 3), tokens, None), r"embeds must return .*\[2, 8\]"),
        ("provenance", lambda: {"checkpoint_hash": "other"}, "is 'other', but"),
    ],
)
def test_each_mistake_is_named(member, wrong, says):
    encoder = Letters()
    setattr(encoder, member, wrong)
    with pytest.raises(UserError, match=says):
        check_encoder(encoder)


def test_sizes_that_fail_and_masks_that_disagree_are_named():
    encoder = Letters()
    encoder.encode_dense = lambda images, mode: encoder.patches(images[..., :32, :32])
    encoder.config.fixed_size = False
    with pytest.raises(UserError, match=r"at 64 x 64 pixels must return a tensor \[2, 8, 4, 4\]"):
        check_encoder(encoder)
    encoder = Letters()
    encoder.config.fixed_size = False
    encoder.encode_dense = lambda images, mode: encoder.patches(images.reshape(2, 3, 32, 32))
    with pytest.raises(UserError, match="Resize the position embeddings, or set config.fixed_size=True"):
        check_encoder(encoder)
    towers = SmartCLIP.from_arch("SmartCLIP-tiny", seed=0).eval()
    features = towers.forward_text(towers.tokenize(["a cup", "two dogs on a sofa"]))
    towers.forward_text = lambda tokens: replace(features, mask_logits=features.mask_logits + 1)
    with pytest.raises(UserError, match=r"differs from forward_text\(tokens\).mask_logits"):
        check_encoder(towers)
