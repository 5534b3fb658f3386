"""Benchmark masked cosine as two matrix products against the broadcast form, plain cosine and the folded numerator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from smartclip_det.core.similarity import masked_cosine
from smartclip_det.studies.benchmarks.measuring import generated_bank, in_turns, show

#: (regions, classes, dimensions).
SHAPES = ((1000, 80, 512), (1000, 1203, 512), (3600, 1203, 768))


def broadcast(vectors: Tensor, texts: Tensor, masks: Tensor) -> Tensor:
    """The released implementation: every region with every mask."""
    return functional.cosine_similarity(vectors[:, None] * masks[None], texts[None], dim=-1)


def run(rounds: int, max_gib: float, device: str) -> dict[str, Any]:
    """Benchmark each shape; the broadcast form only if its tensor fits ``max_gib``."""
    out: dict[str, Any] = {}
    for regions, classes, dim in SHAPES:
        bank = generated_bank(classes, dim).to(device)
        vectors = torch.randn(regions, dim, generator=torch.Generator().manual_seed(1)).to(device)
        folded = (bank.masks * bank.embeds).t().contiguous()
        plain = bank.embeds.t().contiguous()
        variants = {
            "plain cosine": lambda v=vectors, t=plain: functional.normalize(v, dim=1) @ t,
            "two products": lambda v=vectors, b=bank: masked_cosine(v, b.embeds, b.masks),
            "numerator only, folded": lambda v=vectors, t=folded: v @ t,
        }
        gib = regions * classes * dim * 4 / 2**30
        label = f"R={regions} K={classes} D={dim}"
        if gib <= max_gib:
            variants["broadcast"] = lambda v=vectors, b=bank: broadcast(v, b.embeds, b.masks)
        with torch.no_grad():
            rows = in_turns(variants, rounds)
            if "broadcast" in variants:
                difference = float((variants["two products"]() - variants["broadcast"]()).abs().max())
                rows["two products"]["difference_to_broadcast"] = difference
        show(label, rows, "plain cosine")
        if gib > max_gib:
            print(f"broadcast skipped: its tensor needs {gib:.1f} GiB (--max-gib {max_gib:g})")
        out[label] = {"rows": rows, "broadcast_gib": gib}
    return out
