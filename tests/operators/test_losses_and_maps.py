"""Focal losses, CARAFE, masked convolution and MMSyncBN against formulas."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist
from mmcv.ops import MaskedConv2d, SyncBatchNorm, carafe, sigmoid_focal_loss, softmax_focal_loss
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from torch.nn import functional as F  # noqa: N812

from tests.operators import reference

DOUBLE = {"dtype": torch.float64}
TARGET = torch.tensor([0, 2, 3, 1, 3])  # of three classes: 3 is background


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return (3 * torch.randn(5, 3, **DOUBLE)).requires_grad_()


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.0, 0.5), (1.5, 0.9)])
def test_sigmoid_focal_loss(logits, gamma, alpha):
    p = logits.sigmoid()
    hot = F.one_hot(TARGET, 4)[:, :3].double()
    right = torch.where(hot > 0, p, 1 - p)
    expected = -torch.where(hot > 0, alpha, 1 - alpha) * (1 - right) ** gamma * right.log()
    torch.testing.assert_close(sigmoid_focal_loss(logits, TARGET, gamma, alpha, None, "none"), expected)
    weight = torch.tensor([0.5, 2.0, 3.0], **DOUBLE)
    weights = torch.tensor([0.5, 3, 1, 2, 1], **DOUBLE)[:, None]
    weighted = sigmoid_focal_loss(logits, TARGET, gamma, alpha, weight, "none")
    torch.testing.assert_close(weighted, expected * weights)
    assert torch.autograd.gradcheck(lambda x: sigmoid_focal_loss(x, TARGET, gamma, alpha, weight, "mean"), logits)
    assert torch.autograd.gradcheck(lambda x: sigmoid_focal_loss(x, TARGET, gamma, alpha, weight, "sum"), logits)
    hot_target = F.one_hot(TARGET, 4)[:, :3]
    torch.testing.assert_close(
        sigmoid_focal_loss(logits, TARGET, gamma, alpha, None, "none"),
        py_sigmoid_focal_loss(logits, hot_target, gamma=gamma, alpha=alpha, reduction="none"),
    )


def test_confident_wrong_scores_keep_loss_and_gradient():
    logits = torch.tensor([[60.0, -60.0]], requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([1]), 2.0, 0.25, None, "none")
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.tensor([[45.0, 15.0]]))
    torch.testing.assert_close(logits.grad, torch.tensor([[0.75, -0.25]]))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_softmax_focal_loss(logits, gamma):
    target = torch.tensor([0, 2, 1, 1, -1])  # negative labels are ignored
    p = logits.softmax(1)[range(5), target.clamp(min=0)]
    expected = -0.25 * (1 - p) ** gamma * p.log() * torch.tensor([1.0, 1, 1, 1, 0])
    torch.testing.assert_close(softmax_focal_loss(logits, target, gamma, 0.25, None, "none"), expected)
    weight = torch.tensor([0.5, 2.0, 3.0], **DOUBLE)
    assert torch.autograd.gradcheck(lambda x: softmax_focal_loss(x, target, gamma, 0.25, weight, "mean"), logits)
    sure = torch.tensor([[100.0, 0, 0]], requires_grad=True)
    softmax_focal_loss(sure, torch.tensor([0]), gamma, 0.25, None, "sum").backward()
    assert not sure.grad.any()


@pytest.mark.parametrize("loss", [sigmoid_focal_loss, softmax_focal_loss])
def test_losses_of_no_rows_and_in_half_precision(loss):
    empty = torch.zeros(0, 3, requires_grad=True)
    loss(empty, torch.zeros(0, dtype=torch.long), 2.0, 0.25, None, "sum").backward()
    assert empty.grad.shape == (0, 3)
    for dtype in (torch.float16, torch.bfloat16):
        half = torch.tensor([[1.0, -2, 0.5]], dtype=dtype, requires_grad=True)
        out = loss(half, torch.tensor([1]), 2.0, 0.25, None, "sum")
        out.backward()
        full = loss(half.detach().float(), torch.tensor([1]), 2.0, 0.25, None, "sum")
        assert out.dtype == half.grad.dtype == dtype
        torch.testing.assert_close(out.float(), full, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("kernel", "groups", "scale"), [(3, 1, 2), (5, 2, 1), (1, 4, 3), (3, 2, 2)])
def test_carafe(kernel, groups, scale):
    torch.manual_seed(0)
    features = torch.randn(2, 4, 3, 2, **DOUBLE)
    masks = torch.randn(2, kernel**2 * groups, 3 * scale, 2 * scale, **DOUBLE)
    out = carafe(features, masks, kernel, groups, scale)
    torch.testing.assert_close(out, reference.carafe(features, masks, kernel, groups, scale))
    features.requires_grad_(), masks.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, m: carafe(x, m, kernel, groups, scale), (features, masks), fast_mode=True)
    half = carafe(features.detach().bfloat16(), masks.detach().bfloat16(), kernel, groups, scale)
    torch.testing.assert_close(half.double(), out, atol=0.2, rtol=0.1)


def test_masked_convolution():
    torch.manual_seed(0)
    layer = MaskedConv2d(3, 4, (3, 5), padding=(1, 2))
    image, mask = torch.randn(1, 3, 6, 7), torch.rand(1, 6, 7) > 0.6
    with torch.no_grad():
        torch.testing.assert_close(layer(image, mask), layer(image) * mask[:, None], atol=1e-5, rtol=1e-5)
        assert not layer(image, torch.zeros(1, 6, 7)).any()


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_batch_norm_over_one_process(one_process):
    torch.manual_seed(0)
    ours, plain = SyncBatchNorm(3), torch.nn.BatchNorm2d(3)
    plain.weight.data.copy_(ours.weight.data)
    inputs = [torch.randn(2, 3, 4, 5).requires_grad_() for _ in range(2)]
    inputs[1].data.copy_(inputs[0].data)
    outs = [layer(x) for layer, x in zip((ours, plain), inputs, strict=True)]
    grad = torch.randn(2, 3, 4, 5)
    for out in outs:
        out.backward(grad)
    torch.testing.assert_close(*outs)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for name in ("weight", "bias"):
        torch.testing.assert_close(getattr(ours, name).grad, getattr(plain, name).grad)
    torch.testing.assert_close(ours.running_mean, plain.running_mean)
    torch.testing.assert_close(ours.running_var, plain.running_var)
    assert ours(torch.zeros(0, 3, 4, 5)).shape == (0, 3, 4, 5)


def test_batch_norm_over_two_processes_is_that_of_the_whole_batch(ours):
    """The steps of ``mmcv.ops``, with explicit sums over processes."""
    torch.manual_seed(0)
    whole, weight, bias = torch.randn(4, 3, 6), torch.rand(3), torch.randn(3)
    halves = whole.split(2)
    means, variances = torch.zeros(2, 3), torch.zeros(2, 3)
    for half, mean in zip(halves, means, strict=True):
        ours["sync_bn_forward_mean"](half, mean)
    for half, variance in zip(halves, variances, strict=True):
        ours["sync_bn_forward_var"](half, means.mean(0), variance)
    running = [torch.zeros(3), torch.ones(3)]
    outs = []
    for half in halves:
        ran = [r.clone() for r in running]
        norm, std, out = torch.zeros_like(half), torch.zeros(3), torch.zeros_like(half)
        ours["sync_bn_forward_output"](
            half,
            means.mean(0),
            variances.mean(0),
            weight,
            bias,
            *ran,
            norm,
            std,
            out,
            eps=1e-5,
            momentum=torch.tensor([0.1]),
            group_size=2,
        )
        outs.append(out)
    expected_running = [r.clone() for r in running]
    expected = F.batch_norm(whole, *expected_running, weight, bias, training=True)
    torch.testing.assert_close(torch.cat(outs), expected)
    for got, want in itertools.zip_longest(ran, expected_running):
        torch.testing.assert_close(got, want)
