from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from smartclip_det.core.contrastive import alignment_logits, alignment_losses, sparsity_loss
from smartclip_det.core.errors import UserError
from smartclip_det.core.similarity import straight_through


def released_broadcast_form(v, t, m, scale=100.0):
    """The loss as the paper states it: each pair (image i, caption j) written out."""
    b = len(v)
    sim = torch.empty(b, b, dtype=v.dtype)
    rows = []
    for i in range(b):
        row = []
        for j in range(b):
            masked = v[i] * m[j]
            row.append(scale * (masked / masked.norm() * t[j]).sum())
        rows.append(torch.stack(row))
    sim = torch.stack(rows)
    target = torch.arange(b)
    return functional.cross_entropy(sim, target), functional.cross_entropy(sim.t(), target)


def test_losses_and_gradients_equal_the_released_form():
    g = torch.Generator().manual_seed(0)
    base = [torch.randn(6, 16, generator=g, dtype=torch.float64) for _ in range(3)]
    outcomes = []
    for form in ("ours", "released"):
        v, raw, logits = (x.clone().requires_grad_() for x in base)
        t = functional.normalize(raw, dim=-1)
        m = straight_through(logits.sigmoid())
        if form == "ours":
            losses = alignment_losses(alignment_logits(v, t, m))
            sidm, dism = losses["loss_sidm"], losses["loss_dism"]
        else:
            sidm, dism = released_broadcast_form(v, t, m)
        (10 * (sidm + dism) + 2 * sparsity_loss(m)).backward()
        outcomes.append((sidm.detach(), dism.detach(), v.grad, raw.grad, logits.grad))
    for ours, released in zip(*outcomes, strict=True):
        assert torch.allclose(ours, released, rtol=1e-9, atol=1e-10)


def test_without_masks_it_is_the_symmetric_clip_loss():
    g = torch.Generator().manual_seed(1)
    v, t = torch.randn(5, 8, generator=g), torch.randn(5, 8, generator=g)
    logits = alignment_logits(v, t, None)
    expected = 100 * functional.normalize(v, dim=-1) @ functional.normalize(t, dim=-1).t()
    assert torch.allclose(logits, expected, atol=1e-4)


def test_non_modular_masks_each_image_by_its_own_caption():
    g = torch.Generator().manual_seed(2)
    v, t = torch.randn(4, 8, generator=g), torch.randn(4, 8, generator=g)
    m = (torch.rand(4, 8, generator=g) > 0.4).float()
    m[:, 0] = 1
    logits = alignment_logits(v, t, m, modular=False)
    expected = 100 * functional.cosine_similarity((v * m)[:, None], t[None], dim=-1)
    assert torch.allclose(logits, expected, atol=1e-4)
    with pytest.raises(UserError, match="pairs image i with mask i"):
        alignment_logits(v[:3], t, m, modular=False)


def test_strips_of_a_gathered_batch_equal_the_whole():
    g = torch.Generator().manual_seed(3)
    v, t, m = (torch.randn(6, 8, generator=g) for _ in range(3))
    m = (m > -0.5).float()
    whole = alignment_losses(alignment_logits(v, t, m))
    parts = []
    for start in (0, 3):
        rows = slice(start, start + 3)
        images = alignment_logits(v[rows], t, m)
        texts = alignment_logits(v, t[rows], m[rows]).t()
        parts.append(alignment_losses(images, texts, torch.arange(start, start + 3)))
    for key in whole:
        assert torch.allclose((parts[0][key] + parts[1][key]) / 2, whole[key], atol=1e-5)
    with pytest.raises(UserError, match="text_logits of their own"):
        alignment_losses(alignment_logits(v[:3], t, m))


def test_sparsity_is_the_share_of_dimensions_kept():
    assert sparsity_loss(torch.tensor([[1.0, 0.0, 1.0, 1.0]])).item() == 0.75
