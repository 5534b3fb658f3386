from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from smartclip_det.core.errors import UserError
from smartclip_det.core.similarity import (
    DegenerateCounter,
    mask_ceiling,
    masked_cosine,
    masked_dot,
    resolve_masks,
    straight_through,
)


def broadcast_reference(v, t, m, text_norm="full"):
    """The definition with an R x K x D tensor, independent of the code under test."""
    masked = v[:, None, :] * m[None]
    text = t * m if text_norm == "masked" else t
    dots = (masked * t[None]).sum(-1)
    return dots / (masked.norm(dim=-1) * text.norm(dim=-1)[None])


def sample(r=7, k=5, d=24, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    v = torch.randn(r, d, generator=g, dtype=dtype)
    t = torch.randn(k, d, generator=g, dtype=dtype)
    logits = torch.randn(k, d, generator=g, dtype=dtype)
    return v, t, logits


@pytest.mark.parametrize("text_norm", ["full", "masked"])
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("chunk", [None, 2])
def test_equals_the_broadcast_form_in_value_and_all_gradients(text_norm, hard, chunk):
    v, t, logits = sample()
    weight = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    results = []
    for form in ("ours", "reference"):
        leaves = [x.clone().requires_grad_() for x in (v, t, logits)]
        probs = leaves[2].sigmoid()
        m = straight_through(probs) if hard else probs
        if form == "ours":
            s = masked_cosine(leaves[0], leaves[1], m, text_norm=text_norm, chunk_size=chunk)
        else:
            s = broadcast_reference(leaves[0], leaves[1], m, text_norm)
        (s * weight).sum().backward()
        results.append((s.detach(), *(x.grad for x in leaves)))
    for ours, reference in zip(*results, strict=True):
        assert torch.allclose(ours, reference, rtol=1e-10, atol=1e-10)


def test_straight_through_is_exactly_binary_with_the_gradient_of_p():
    probs = torch.tensor([[0.5, 0.49999, 0.1, 0.93]], requires_grad=True)
    hard = straight_through(probs)
    assert hard.tolist() == [[1.0, 0.0, 0.0, 1.0]]
    hard.sum().backward()
    assert probs.grad.tolist() == [[1.0] * 4]


def test_the_square_of_the_mask_matters_for_the_gradient():
    v, t, logits = sample()
    grads = []
    for square in (True, False):
        leaf = logits.clone().requires_grad_()
        m = straight_through(leaf.sigmoid())
        q = (v * v) @ ((m * m) if square else m).t()
        ((v @ (m * functional.normalize(t, dim=-1)).t()) / q.sqrt()).sum().backward()
        grads.append(leaf.grad)
    ours = logits.clone().requires_grad_()
    masked_cosine(v, t, straight_through(ours.sigmoid())).sum().backward()
    assert torch.allclose(ours.grad, grads[0], atol=1e-12)
    assert not torch.allclose(ours.grad, grads[1], rtol=1e-2)


def test_ones_mask_equals_the_plain_cosine():
    v, t, _ = sample(dtype=torch.float32)
    plain = functional.cosine_similarity(v[:, None], t[None], dim=-1)
    assert torch.allclose(masked_cosine(v, t), plain, atol=1e-6)
    assert torch.equal(masked_cosine(v, t, torch.ones_like(t)), masked_cosine(v, t)) or torch.allclose(
        masked_cosine(v, t, torch.ones_like(t)), masked_cosine(v, t), atol=1e-6
    )


@settings(deadline=None, max_examples=60)
@given(exponent=st.floats(-20, 20), text_exponent=st.floats(-20, 20), seed=st.integers(0, 10_000))
def test_scale_invariance_in_fp32(exponent, text_exponent, seed):
    v, t, logits = sample(seed=seed, dtype=torch.float32)
    m = (logits > 0).float()
    m[:, 0] = 1
    base = masked_cosine(v, t, m)
    scaled = masked_cosine(v * 10.0**exponent, t * 10.0**text_exponent, m)
    assert torch.isfinite(scaled).all()
    assert torch.allclose(base, scaled, atol=2e-5)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 9))
def test_permutation_and_independence_of_other_texts(seed, k):
    v, t, logits = sample(k=9, seed=seed)
    m = (logits > 0).double()
    whole = masked_cosine(v, t, m)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(masked_cosine(v, t[order], m[order]), whole[:, order], atol=1e-12)
    assert torch.allclose(masked_cosine(v, t[:k], m[:k]), whole[:, :k], atol=1e-12)


def test_zero_masks_give_zero_score_and_zero_gradient_and_are_counted():
    v, t, _ = sample(dtype=torch.float32)
    m = torch.ones_like(t)
    m[2] = 0
    leaves = [x.clone().requires_grad_() for x in (v, t, m)]
    counter = DegenerateCounter()
    s = masked_cosine(*leaves, counter=counter)
    assert s[:, 2].tolist() == [0.0] * 7
    s[:, 2].sum().backward()
    for leaf in leaves:
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))
    assert counter.read() == (7, 35)
    assert counter.read() == (0, 0)


def test_zero_image_and_zero_text_are_finite():
    v, t, _ = sample(dtype=torch.float32)
    v[0], t[1] = 0, 0
    s = masked_cosine(v.requires_grad_(), t.requires_grad_(), torch.ones(5, 24))
    assert torch.isfinite(s).all()
    assert s[0].abs().max() == 0
    assert s[:, 1].abs().max() == 0
    s.sum().backward()
    assert torch.isfinite(v.grad).all()
    assert torch.isfinite(t.grad).all()


@pytest.mark.parametrize(("r", "k"), [(0, 5), (7, 0), (0, 0)])
def test_empty_rows(r, k):
    v, t, logits = sample(r=r, k=k)
    assert masked_cosine(v, t, logits.sigmoid()).shape == (r, k)
    assert masked_cosine(v, t, logits.sigmoid(), chunk_size=2).shape == (r, k)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_inputs_are_computed_in_fp32(dtype):
    v, t, logits = sample(dtype=torch.float32)
    m = (logits > 0).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = masked_cosine(v, t, m)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, masked_cosine(v, t, m))
    half = masked_cosine(v.to(dtype), t.to(dtype), m)
    assert half.dtype == torch.float32
    assert torch.equal(half, masked_cosine(v.to(dtype).float(), t.to(dtype).float(), m))


def test_numerator_only_is_the_product_with_the_masked_unit_text():
    v, t, logits = sample()
    m = (logits > 0).double()
    assert torch.allclose(masked_dot(v, t, m), v @ (m * functional.normalize(t, dim=-1)).t(), atol=1e-12)


def test_score_factorises_into_ceiling_and_cosine_of_masked_vectors():
    v, t, logits = sample()
    m = (logits > 0).double()
    product = mask_ceiling(t, m) * masked_cosine(v, t, m, text_norm="masked")
    assert torch.allclose(product, masked_cosine(v, t, m), atol=1e-12)


def test_no_r_by_k_by_d_tensor_is_saved():
    v, t, logits = sample(r=64, k=64, d=256, dtype=torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        masked_cosine(v.requires_grad_(), t.requires_grad_(), logits.sigmoid())
    assert max(saved) <= 64 * 256


class TestMaskModes:
    texts = ("a cat", "a dog", "a red bus", "the sky")

    def masks(self):
        probs = torch.rand(4, 32, generator=torch.Generator().manual_seed(3))
        return (probs >= 0.5).float(), probs

    def test_hard_soft_off(self):
        hard, probs = self.masks()
        assert torch.equal(resolve_masks(hard, "hard", self.texts, probs), hard)
        assert torch.equal(resolve_masks(probs, "hard", self.texts), hard)
        assert torch.equal(resolve_masks(hard, "soft", self.texts, probs), probs)
        assert resolve_masks(hard, "off", self.texts) is None

    def test_random_has_equal_density_and_depends_on_the_text_alone(self):
        hard, _ = self.masks()
        random = resolve_masks(hard, "random", self.texts)
        assert random.sum(1).tolist() == hard.sum(1).tolist()
        assert not torch.equal(random, hard)
        flipped = resolve_masks(hard.flip(0), "random", self.texts[::-1])
        assert torch.equal(flipped.flip(0), random)

    def test_shuffled_gives_each_text_another_mask_whatever_the_order(self):
        hard, _ = self.masks()
        shuffled = resolve_masks(hard, "shuffled", self.texts)
        assert all(not torch.equal(a, b) for a, b in zip(shuffled, hard, strict=True))
        assert sorted(map(str, shuffled.tolist())) == sorted(map(str, hard.tolist()))
        assert torch.equal(resolve_masks(hard.flip(0), "shuffled", self.texts[::-1]).flip(0), shuffled)

    def test_shuffled_takes_another_classs_mask_and_needs_one(self):
        hard, _ = self.masks()
        index = torch.tensor([0, 0, 1, 1])
        shuffled = resolve_masks(hard, "shuffled", self.texts, class_index=index)
        assert torch.equal(shuffled[:2], hard[2:])
        assert torch.equal(shuffled[2:], hard[:2])
        with pytest.raises(UserError, match="at least two classes"):
            resolve_masks(hard[:1], "shuffled", self.texts[:1])

    def test_unknown_mode_names_the_nearest(self):
        hard, _ = self.masks()
        with pytest.raises(UserError, match=r"shufled.*Nearest: shuffled"):
            resolve_masks(hard, "shufled", self.texts)


def test_nan_and_inf_stay_visible():
    v, t, _ = sample(dtype=torch.float32)
    v[0, 0] = float("nan")
    v[1, 3] = float("inf")
    s = masked_cosine(v, t, torch.ones_like(t))
    assert s[:2].isnan().all()
    assert s[2:].isfinite().all()


def test_shapes_are_checked():
    v, t, logits = sample()
    with pytest.raises(UserError, match=r"\[7, 24\].*\[5, 20\]"):
        masked_cosine(v, t[:, :20])
    with pytest.raises(UserError, match="masks must have the shape"):
        masked_cosine(v, t, logits[:2])
    with pytest.raises(UserError, match="text_norm"):
        masked_cosine(v, t, text_norm="ful")
