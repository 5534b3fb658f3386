"""Reading and writing text banks as safetensors files."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from smartclip_det.core.errors import UserError
from smartclip_det.core.text_bank import TextBank

_FORMAT = "smartclip_det.text_bank/1"


def write_bank(bank: TextBank, path: str | Path) -> None:
    """Write the bank as safetensors; binary masks take one byte per entry."""
    from safetensors.torch import save_file

    tensors = _tensors(bank, "")
    if bank.background is not None:
        tensors.update(_tensors(bank.background, "background_"))
    save_file(tensors, str(path), metadata={"format": _FORMAT})


def _tensors(bank: TextBank, prefix: str) -> dict[str, Tensor]:
    """All fields as tensors, including the texts: a safetensors header cannot hold 100,000 of them."""
    binary = bool(((bank.masks == 0) | (bank.masks == 1)).all())
    words = {
        "names": bank.names,
        "texts": bank.texts,
        "provenance": bank.provenance,
        "mask_dtype": str(bank.masks.dtype).removeprefix("torch."),
    }
    tensors = {
        "embeds": bank.embeds,
        "masks": bank.masks.to(torch.uint8) if binary else bank.masks,
        "class_index": bank.class_index,
        "seen": bank.seen,
        "words": torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8),
    }
    if bank.mask_probs is not None:
        tensors["mask_probs"] = bank.mask_probs
    return {prefix + k: v.detach().cpu().contiguous() for k, v in tensors.items()}


def _from_tensors(tensors: dict[str, Tensor], prefix: str, background: TextBank | None) -> TextBank:
    words = json.loads(tensors[f"{prefix}words"].numpy().tobytes())
    return TextBank(
        names=tuple(words["names"]),
        embeds=tensors[f"{prefix}embeds"],
        masks=tensors[f"{prefix}masks"].to(getattr(torch, words["mask_dtype"])),
        texts=tuple(words["texts"]),
        class_index=tensors[f"{prefix}class_index"],
        seen=tensors[f"{prefix}seen"],
        mask_probs=tensors.get(f"{prefix}mask_probs"),
        provenance=words["provenance"],
        background=background,
    )


def read_bank(path: str | Path) -> TextBank:
    """Read a bank written by :func:`write_bank`.

    Raises:
        UserError: if the file is missing or not a text bank.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise UserError(f"No text bank at {path}. Create one with tools/encode_texts.py.")
    try:
        with safe_open(str(path), framework="pt") as handle:
            header = handle.metadata() or {}
            if header.get("format") != _FORMAT:
                raise UserError(f"{path} is not a text bank (its format is {header.get('format')!r}).")
            tensors = {k: handle.get_tensor(k) for k in handle.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}).") from error
    try:
        background = None
        if "background_embeds" in tensors:
            background = _from_tensors(tensors, "background_", None)
        return _from_tensors(tensors, "", background)
    except UserError as error:
        raise UserError(f"{path} is a corrupt text bank: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is a corrupt text bank ({type(error).__name__}: {error}); recreate it with encode_texts."
        ) from error
