from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from smartclip_det.core.contrastive import (
    alignment_logits,
    hard_concrete,
    main_directions,
    principal_part,
    sigmoid_strip,
    softmax_strip,
    sparsity_loss,
)
from smartclip_det.core.errors import UserError
from smartclip_det.core.similarity import straight_through
from smartclip_det.core.softmax_tile import SoftmaxTile


def released_broadcast_form(v, t, m, scale=100.0):
    """The loss as in the paper, with a loop over pairs (image i, caption j)."""
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


def both_terms(strip):
    return (strip.rows - strip.matched).mean(), (strip.columns - strip.matched).mean()


@pytest.mark.parametrize("tile", [1 << 24, 36, 10, 6, 1])
def test_losses_and_gradients_equal_the_released_form(tile):
    g = torch.Generator().manual_seed(0)
    base = [torch.randn(6, 16, generator=g, dtype=torch.float64) for _ in range(3)]
    outcomes = []
    for form in ("ours", "released"):
        v, raw, logits = (x.clone().requires_grad_() for x in base)
        t = functional.normalize(raw, dim=-1)
        m = straight_through(logits.sigmoid())
        sidm, dism = (
            both_terms(softmax_strip(v, t, m, tile=tile)) if form == "ours" else released_broadcast_form(v, t, m)
        )
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


@pytest.mark.parametrize("tile", [1 << 24, 7, 2])
def test_strips_of_a_gathered_batch_make_the_whole(tile):
    g = torch.Generator().manual_seed(3)
    v, t, m = (torch.randn(7, 8, generator=g, dtype=torch.float64) for _ in range(3))
    m = (m > -0.5).double()
    whole = alignment_logits(v, t, m)
    parts = [softmax_strip(v[a:b], t, m, a, tile=tile) for a, b in ((0, 3), (3, 7))]
    assert torch.allclose(torch.cat([p.rows for p in parts]), whole.logsumexp(1))
    assert torch.allclose(torch.stack([p.columns for p in parts]).logsumexp(0), whole.logsumexp(0))
    assert torch.allclose(torch.cat([p.matched for p in parts]), whole.diagonal())
    assert torch.allclose(parts[0].total + parts[1].total, whole.sum())
    with pytest.raises(UserError, match="do not fit 7 captions"):
        softmax_strip(v[:3], t, m, 5)
    with pytest.raises(UserError, match="tile"):
        softmax_strip(v, t, m, tile=0)


@pytest.mark.parametrize("tile", [1 << 24, 5])
def test_the_sigmoid_form_is_the_sum_over_pairs(tile):
    g = torch.Generator().manual_seed(4)
    v, t, m = (torch.randn(4, 8, generator=g, dtype=torch.float64) for _ in range(3))
    m = (m > 0).double()
    m[:, 0] = 1
    expected = 0.0
    for i in range(4):
        for j in range(4):
            z = 1 if i == j else -1
            cosine = functional.cosine_similarity(v[i] * m[j], t[j], dim=0).item()
            expected += math.log1p(math.exp(-z * (10 * cosine - 3)))
    found = [sigmoid_strip(v[a:b], t, m, a, scale=10.0, bias=-3.0, tile=tile) for a, b in ((0, 1), (1, 4))]
    assert sum(found).item() == pytest.approx(expected, rel=1e-9)


def spread(values, rows, dim):
    """Vectors around a mean with these fractions of variance in orthogonal directions."""
    g = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(dim, len(values), generator=g)).Q
    return 3 * torch.ones(dim) + torch.randn(rows, len(values), generator=g) * torch.tensor(values) @ axes.t()


def test_the_principal_part_is_the_projection_on_the_main_directions():
    v = spread([1.0, 0.7, 0.1, 0.05, 0.02], 12, 6)
    unit = torch.nn.functional.normalize(v, dim=1).double()
    centred = unit - unit.mean(0)
    _, vectors = torch.linalg.eigh(centred.t() @ centred)
    kept = vectors[:, -2:]
    assert torch.allclose(principal_part(v, 2).double(), centred @ kept @ kept.t() + unit.mean(0), atol=1e-5)
    for rows in (v, v[:4], torch.cat([v[:2], v[:2]])):
        whole = torch.nn.functional.normalize(rows, dim=1)
        assert torch.allclose(principal_part(rows, 6), whole, atol=1e-5)
    with pytest.raises(UserError, match="components"):
        principal_part(v, 0)


@pytest.mark.parametrize("power", [0.0, 0.3, 1.0])
def test_directions_without_an_svd_hold_what_those_of_an_svd_do(power):
    """Spectra from flat, where the principal directions are arbitrary, to steep."""
    rows = spread([(n + 1) ** -power for n in range(48)], 64, 96)
    rows = rows - rows.mean(0)
    found = main_directions(rows, 16)
    assert torch.allclose(found.t() @ found, torch.eye(16), atol=1e-5)
    best = torch.linalg.svdvals(rows)[:16].square().sum()
    assert (rows @ found).square().sum() >= 0.99 * best


def test_hard_concrete_masks_are_binary_at_the_ends_and_half_in_the_middle():
    logits = torch.tensor([-9.0, 0.0, 9.0])
    assert hard_concrete(logits, None).tolist() == pytest.approx([0.0, 0.5, 1.0])
    noise = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    drawn = hard_concrete(torch.zeros(4000), noise)
    # P(z = 0) = sigmoid(beta log(g / (1 + g)) - logit) with beta = 2/3 and stretch g = 0.1.
    expected = 1 / (1 + math.exp(-(2 / 3) * math.log(0.1 / 1.1)))
    assert (drawn == 0).float().mean().item() == pytest.approx(expected, abs=0.02)
    assert (drawn == 1).float().mean().item() == pytest.approx(expected, abs=0.02)


def test_sparsity_is_the_share_of_dimensions_kept():
    assert sparsity_loss(torch.tensor([[1.0, 0.0, 1.0, 1.0]])).item() == 0.75


def saved_bytes(batch, tile):
    """Elements that a strip of ``batch`` x ``batch`` saves for its backward pass."""
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(batch, 8, generator=g).requires_grad_() for _ in range(3)]
    seen = {}

    def pack(x):
        seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        strip = softmax_strip(*given[:2], given[2].sigmoid(), tile=tile)
        del strip
    return sum(seen.values())


def test_tiles_keep_inputs_and_sums_alone():
    """Two sums per row of a tile: 2 B^2 / sqrt(tile) numbers in addition to the inputs; the strip itself is B^2."""
    whole, tiled = saved_bytes(256, 1 << 24), saved_bytes(256, 256)
    # One tile: its logits, the inputs, and a few vectors.
    assert 4 * 256**2 < whole < 4 * (256**2 + 4 * 256 * 8 + 10 * 256)
    assert tiled < 4 * (4 * 256**2 / 16 + 3 * 256 * 8 + 4 * 256)


def read_by_autograd(v, t, m, scale, offset, text_norm):
    logits = alignment_logits(v, t, m, scale=scale, text_norm=text_norm)
    own = [logits[b, b + offset] if 0 <= b + offset < len(t) else logits.new_zeros(()) for b in range(len(v))]
    return logits.logsumexp(1), logits.logsumexp(0), torch.stack(own), logits.sum()


@pytest.mark.parametrize("text_norm", ["full", "masked"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("offset", [-3, 0, 2, 8])
def test_a_tile_gives_what_autograd_gives_also_where_nothing_is_left(text_norm, masked, offset):
    g = torch.Generator().manual_seed(0)
    v, t, m = (torch.randn(n, 7, generator=g, dtype=torch.float64) for n in (5, 9, 9))
    m = (m.sigmoid() > 0.4) * m.sigmoid()
    v[1] = 0
    t[2] = 0
    m[3] = 0
    m[4], v[2, :3] = torch.tensor([1.0, 1, 1, 0, 0, 0, 0]), 0  # this image is zero under that mask
    scale = torch.tensor(10.0, dtype=torch.float64)
    given = [x.requires_grad_() for x in (v, t, *([m] if masked else []), scale)]
    masks = m if masked else None
    ours = SoftmaxTile.apply(v, t, masks, scale, offset, text_norm == "masked")
    theirs = read_by_autograd(v, t, masks, scale, offset, text_norm)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, rtol=1e-12, atol=1e-12)
        weights = torch.randn(mine.shape, generator=g, dtype=torch.float64)
        found = torch.autograd.grad((mine * weights).sum(), given, retain_graph=True, allow_unused=True)
        wanted = torch.autograd.grad((other * weights).sum(), given, retain_graph=True, materialize_grads=True)
        for a, b in zip(found, wanted, strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-11)
    assert torch.isfinite(torch.stack([x.sum() for x in found])).all()


def test_a_tile_is_in_full_precision_under_autocast_and_shows_nan():
    g = torch.Generator().manual_seed(0)
    v, t, m = (torch.randn(n, 32, generator=g) for n in (6, 8, 8))
    leaf = v.clone().requires_grad_()
    plain = softmax_strip(leaf, t, m.sigmoid())
    (wanted,) = torch.autograd.grad(plain.rows.sum(), leaf)
    with torch.autocast("cpu", torch.bfloat16):
        cast = softmax_strip(leaf, t, m.sigmoid())
        (found,) = torch.autograd.grad(cast.rows.sum(), leaf)
    assert torch.equal(cast.rows, plain.rows)
    assert torch.equal(found, wanted)
    v[0, 0] = math.nan
    assert softmax_strip(v, t, m.sigmoid()).rows.isnan().tolist() == [True] + [False] * 5
