"""FLOPs and bytes of operators, by hand; the host's share of an alignment step."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from smartclip_det.models.towers.config import architecture
from smartclip_det.studies.benchmarks import host, roofline
from smartclip_det.studies.benchmarks.alignment import step_flops
from smartclip_det.studies.benchmarks.counting import CARDS, Card, Operator, estimate, fused, record

SMALL = Card(bf16=1000.0, tf32=500.0, fp32=100.0, bandwidth=10.0)


def recorded(step):
    with FakeTensorMode():
        return record(step)[0]


def test_bytes_and_flop_of_single_operators():
    def step():
        x, w = torch.empty(10, 20), torch.empty(30, 20, dtype=torch.bfloat16)
        y = functional.linear(x.to(torch.bfloat16), w)
        y.unsqueeze(0).expand(4, 10, 30) + 1
        torch.empty(1000, 8)[torch.zeros(5, dtype=torch.long)]

    cast, product, add, zeros, rows = recorded(step)
    assert (cast.name, cast.flop, cast.bytes) == ("_to_copy", 0, 200 * 4 + 200 * 2)
    assert (product.name, product.flop, product.dtype) == ("mm", 2 * 10 * 20 * 30, torch.bfloat16)
    assert product.bytes == 2 * (200 + 600 + 300)
    # Expanded tensors are read once; of a table only the selected rows.
    assert add.bytes == 2 * (300 + 4 * 300)
    assert zeros.bytes == 5 * 8
    assert rows.bytes == 5 * 8 + 2 * (5 * 8 * 4)


def test_an_operator_takes_as_long_as_its_slower_half():
    def op(name, flop, dtype, size):
        return Operator(name, flop, dtype, {0: size}, {})

    assert op("mm", 1000, torch.bfloat16, 1).seconds(SMALL, 1, 1) == 1
    assert op("mm", 1000, torch.float32, 1).seconds(SMALL, 1, 1) == 10
    assert op("convolution", 1000, torch.float32, 1).seconds(SMALL, 1, 1) == 2
    assert op("mm", 1000, torch.bfloat16, 100).seconds(SMALL, 1, 1) == 10
    found = estimate([op("mm", 1000, torch.bfloat16, 1), op("add", 0, torch.float32, 8)], SMALL)
    assert found["milliseconds"] == pytest.approx(1e3 * (1 / 0.65 + 1))
    assert found["bound_milliseconds"] == pytest.approx(1e3 * 1.8)
    assert found["share_of_peak"] == pytest.approx(1 / (1 / 0.65 + 1))


def test_fused_runs_move_what_comes_and_goes():
    def step():
        x, w = torch.empty(8, 8), torch.empty(8, 8)
        y = ((x * 2).sigmoid() + x) @ w
        (y.relu() * 3).sum()

    operators = recorded(step)
    assert [op.name for op in operators] == ["mul", "sigmoid", "add", "mm", "relu", "mul", "sum"]
    before, product, after = fused(operators)
    assert before.bytes == 2 * 64 * 4
    assert product is operators[3]
    assert after.bytes == 64 * 4 + 4


def test_autocast_is_that_of_cuda():
    def step(enabled=True):
        x = torch.empty(4, 6)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = torch.nn.Linear(6, 6)(x)
            z = torch.nn.LayerNorm(6)(y)
        seen.append((y.dtype, z.dtype, (x + y).dtype))

    seen: list = []
    recorded(step)
    recorded(lambda: step(enabled=False))
    assert seen == [(torch.bfloat16, torch.float32, torch.float32), (torch.float32,) * 3]


def test_an_alignment_step_counts_what_its_formula_says_and_changes_save_bytes(capsys):
    arch, batch = "SmartCLIP-tiny", 8
    found = roofline.alignment(arch, batch)["variants"]
    config = architecture(arch)
    formula = batch * step_flops(config, config.context_length) / 1e12
    for row in found.values():
        # The formula ignores the head, the projections, and that images need no gradient.
        assert row["teraflop"] == pytest.approx(formula, rel=0.05)
        assert row["H200"]["milliseconds"] < row["H100"]["milliseconds"]
        assert row["H100"]["bound_milliseconds"] < row["H100"]["milliseconds"]
    before, now, half = (found[k] for k in ("QuickGELU in three kernels", "as trained", "half residuals"))
    assert now["saved_gib"] < before["saved_gib"]
    assert half["saved_gib"] < now["saved_gib"]
    assert found["blocks compiled"]["gigabytes"] < now["gigabytes"]
    assert "alignment, SmartCLIP-tiny, 8 pairs" in capsys.readouterr().out
    assert CARDS["H200"].bf16 == CARDS["H100"].bf16


def test_the_host_prepares_a_step_in_less_time_than_by_default():
    found = host.run(64, 5, "cpu")
    assert found["total"] == pytest.approx(sum(found["milliseconds"].values()))
    assert found["total"] < found["default_total"] / 3
