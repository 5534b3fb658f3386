"""Rank 0 encodes and broadcasts to the other ranks."""

from __future__ import annotations

import pytest
import torch

from smartclip_det.models.towers import SmartCLIP
from smartclip_det.models.vocabulary import build_bank
from tests.processes import run_processes

NAMES = ["cat", "dog", "traffic light"]


def encode(rank, world):
    encoder = SmartCLIP.from_arch("SmartCLIP-tiny")
    calls = []
    original = encoder.forward_text
    encoder.forward_text = lambda tokens: calls.append(len(tokens)) or original(tokens)
    bank = build_bank(encoder, NAMES, seen=["cat"], progress=False)
    return {"calls": sum(calls), "embeds": bank.embeds, "masks": bank.masks, "seen": bank.seen}


@pytest.mark.dist
def test_only_rank_zero_encodes_and_all_hold_the_same_bank(tmp_path):
    zero, one = run_processes(encode, 2, tmp_path)
    assert zero["calls"] == 4  # three names and the background
    assert one["calls"] == 0
    for key in ("embeds", "masks", "seen"):
        assert torch.equal(zero[key], one[key])
    assert one["seen"].tolist() == [True, False, False]
