"""Compiled transformer blocks: equal losses and gradients, one graph per size, none for new text lengths."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from smartclip_det.core.errors import UserError
from smartclip_det.models.alignment import SmartCLIPAlignment
from smartclip_det.models.towers import SmartCLIP
from smartclip_det.models.towers.text_batch import pad_texts
from smartclip_det.models.towers.transformer import ResidualBlock, compile_blocks

TOWERS = {"arch": "SmartCLIP-tiny", "seed": 0, "mask_pad": "ignore"}


def texts(longest):
    return pad_texts([[49406, *range(320, 320 + n), 49407] for n in (3, 5, longest - 2, 4)])


def losses_and_gradients(model, given):
    g = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 64, 64, generator=g)
    model.zero_grad()
    losses = model(images, [None] * 4, mode="loss", texts=given)
    sum(v for k, v in losses.items() if k.startswith("loss")).backward()
    return losses, {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def close(found, expected):
    """Losses to 1e-5 each, gradients to 1e-5 of the largest: those of key biases are pure rounding."""
    for k, v in expected[0].items():
        torch.testing.assert_close(found[0][k], v, rtol=1e-5, atol=1e-6)
    assert found[1].keys() == expected[1].keys()
    largest = max(g.abs().max() for g in expected[1].values())
    for k, g in expected[1].items():
        assert (found[1][k] - g).abs().max() <= 1e-5 * largest, k


@pytest.mark.parametrize("options", [{}, {"checkpointing": True, "text_chunks": 2}])
def test_steps_are_those_of_eager_blocks_and_lengths_compile_nothing_new(options):
    torch._dynamo.reset()
    counters.clear()
    soft = {"mask_mode": "soft"}
    plain, model = (SmartCLIPAlignment(TOWERS, soft, length_multiple=32, **options).train() for _ in range(2))
    counter = CompileCounterWithBackend("aot_eager")
    assert compile_blocks(model, counter) == sum(isinstance(m, ResidualBlock) for m in model.modules())
    close(losses_and_gradients(model, texts(9)), losses_and_gradients(plain, texts(9)))
    # Image, text and mask network blocks: layers of one tower share a graph.
    assert counter.frame_count == 3
    for longest in (12, 21, 32):
        close(losses_and_gradients(model, texts(longest)), losses_and_gradients(plain, texts(longest)))
    assert counter.frame_count == 3
    # Another multiple: text and mask network blocks compile once more; one of two chunks stays short.
    close(losses_and_gradients(model, texts(33)), losses_and_gradients(plain, texts(33)))
    assert counter.frame_count == 5
    assert not counters["graph_break"]


def test_padded_texts_are_the_same_texts():
    plain, padded = (SmartCLIPAlignment(TOWERS, {"mask_mode": "soft"}, length_multiple=n).train() for n in (0, 32))
    found, expected = (losses_and_gradients(m, texts(9)) for m in (padded, plain))
    for k, v in expected[0].items():
        torch.testing.assert_close(found[0][k], v, rtol=1e-4, atol=1e-5)
    given = texts(9)
    for multiple, length in ((1, 9), (8, 16), (64, 64), (100, 77)):
        seen = []
        hook = plain.towers.text_tower.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].shape))
        plain.towers.forward_text_by_length(
            given["tokens"], 1, lengths=given["lengths"], order=(given["order"], given["back"]), multiple=multiple
        )
        hook.remove()
        assert seen == [(4, length)]


def test_evaluation_copies_and_files_know_nothing_of_it():
    torch._dynamo.reset()
    model, plain = (SmartCLIP.from_arch("SmartCLIP-tiny") for _ in range(2))
    counter = CompileCounterWithBackend("eager")
    compile_blocks(model, counter)
    assert model.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.encode_image(images), plain.encode_image(images))
    assert counter.frame_count == 0
    other = copy.deepcopy(model).train()
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    model.train()
    torch.testing.assert_close(model.encode_image(images), plain.encode_image(images))
    assert counter.frame_count == 1
    assert not other.encode_image(images).any()


def test_an_unknown_backend_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="inductor"):
        SmartCLIPAlignment(TOWERS, compile="indutcor")
