"""Host work of an alignment step before the towers receive their batch; a GPU is idle for all of it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import torch
from mmengine.dataset import default_collate, pseudo_collate
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from smartclip_det.datasets.caption_batch import caption_batch
from smartclip_det.models.alignment import SmartCLIPAlignment
from smartclip_det.studies.benchmarks.alignment import PREFIX_TOKENS, caption_tokens
from smartclip_det.studies.benchmarks.measuring import in_turns

#: Target in milliseconds before the first kernel, for a step of 256 pairs.
AIM = 5.0


def caption_rows(count: int, side: int, context: int) -> list[dict[str, Any]]:
    """Samples as returned by the data set: pixels, caption tokens, and metadata."""
    tokens = caption_tokens(count, context, min(PREFIX_TOKENS, context // 2))
    ends = (tokens.argmax(dim=1) + 1).tolist()
    pixels = torch.zeros(3, side, side, dtype=torch.uint8)
    rows = []
    for n, end in enumerate(ends):
        facts = {
            "img_id": n,
            "img_path": f"images/{n}.jpg",
            "drawn_captions": ["a caption"],
            "drawn_tokens": [tokens[n, :end].tolist()],
        }
        rows.append({"inputs": pixels, "data_samples": BaseDataElement(metainfo=facts)})
    return rows


class _ReachedError(Exception):
    """The towers were called."""


def run(batch: int, rounds: int, device: str) -> dict[str, Any]:
    """Measure each stage, as trained and with MMEngine's defaults, and compare the total with the target."""
    # The width of the towers does not matter, because they are not run.
    model = SmartCLIPAlignment({"arch": "SmartCLIP-tiny", "seed": 0}).to(device).train()
    rows = caption_rows(batch, 224, 77)
    ours = stages(model, caption_batch(rows), rounds)
    theirs = default_stages(model, rows, rounds)
    collate = milliseconds({"collate": lambda: caption_batch(rows)}, rounds)["collate"]
    total = sum(ours.values())
    print(f"host work before the first kernel, {batch} pairs, on {device}, ms (median of {rounds})")
    for name, found in (("MMEngine's defaults", theirs), ("as trained", ours)):
        parts = ", ".join(f"{k} {v:.2f}" for k, v in found.items())
        print(f"  {name:20s} {sum(found.values()):7.2f}: {parts}")
    print(f"  in a worker, in parallel: collating {collate:.2f}")
    print(f"  {'reached' if total <= AIM else 'MISSED'}: {total:.2f} of {AIM} ms")
    return {
        "batch": batch,
        "milliseconds": ours,
        "total": total,
        "aim": AIM,
        "reached": total <= AIM,
        "worker_milliseconds": {"collate": collate},
        "default_milliseconds": theirs,
        "default_total": sum(theirs.values()),
    }


def stages(model: SmartCLIPAlignment, batch: dict[str, Any], rounds: int) -> dict[str, float]:
    """Time from the worker's message to the call of the image tower."""
    # Pixels are in shared memory; the rest is pickled.
    sent = pickle.dumps({k: v for k, v in batch.items() if k != "inputs"})
    ready = model.data_preprocessor(batch, True)
    return milliseconds(
        {
            "unpickling": lambda: pickle.loads(sent),
            "data preprocessor": lambda: model.data_preprocessor(batch, True),
            "texts": lambda: until_towers(model, ready),
        },
        rounds,
    )


def default_stages(model: SmartCLIPAlignment, rows: list[dict[str, Any]], rounds: int) -> dict[str, float]:
    """The same for a list of samples: collated by MMEngine, copied by its data preprocessor, padded in the model."""
    sent = pickle.dumps(pseudo_collate([{"data_samples": r["data_samples"]} for r in rows]))
    batch = {"inputs": default_collate([r["inputs"] for r in rows]), "data_samples": [r["data_samples"] for r in rows]}
    ids = [r["data_samples"].drawn_tokens[0] for r in rows]

    def padded() -> Tensor:
        return pad_sequence([torch.tensor(t) for t in ids], batch_first=True).to(model.towers.logit_scale.device)

    return milliseconds(
        {
            "unpickling": lambda: pickle.loads(sent),
            "data preprocessor": lambda: model.data_preprocessor(batch, True),
            "texts": padded,
        },
        rounds,
    )


def until_towers(model: SmartCLIPAlignment, batch: dict[str, Any]) -> None:
    """Run the forward pass up to the image tower."""

    def stop(*_: Any, **__: Any) -> None:
        raise _ReachedError

    before = model._see
    model._see = stop  # type: ignore[method-assign]
    try:
        model(**batch, mode="loss")
    except _ReachedError:
        return
    finally:
        model._see = before  # type: ignore[method-assign]


def milliseconds(variants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each variant."""
    return {name: 1e3 * row["median"] for name, row in in_turns(variants, rounds).items()}
