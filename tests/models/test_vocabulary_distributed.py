"""Rank 0 encodes, the others receive."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.multiprocessing as mp

from smartclip_det.models.towers import SmartCLIP
from smartclip_det.models.vocabulary import build_bank

NAMES = ["cat", "dog", "traffic light"]


def worker(rank, folder):
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    encoder = SmartCLIP.from_arch("SmartCLIP-tiny")
    calls = []
    original = encoder.forward_text
    encoder.forward_text = lambda tokens: calls.append(len(tokens)) or original(tokens)
    bank = build_bank(encoder, NAMES, seen=["cat"], progress=False)
    torch.save(
        {"calls": sum(calls), "embeds": bank.embeds, "masks": bank.masks, "seen": bank.seen}, f"{folder}/{rank}.pt"
    )
    torch.distributed.destroy_process_group()


@pytest.mark.dist
def test_only_rank_zero_encodes_and_all_hold_the_same_bank(tmp_path):
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    zero, one = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2))
    assert zero["calls"] == 4  # three names and the background
    assert one["calls"] == 0
    for key in ("embeds", "masks", "seen"):
        assert torch.equal(zero[key], one[key])
    assert one["seen"].tolist() == [True, False, False]
