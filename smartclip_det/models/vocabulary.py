"""Strings to TextBank: templates, batching, and a disk cache keyed by content.

The forward pass is in :mod:`smartclip_det.models.towers.text_encoding`.

Template orders, for the T texts of one class (with masks the order matters; SmartCLIP does not define one):

* ``per_template``: one row per text; class scores are the mean over rows. The reference; C * T rows.
* ``average_state`` (default): mean of the normalised vectors, and the mask of the averaged token states.
* ``average_mask``: mean of the normalised vectors, and the dimensions kept by at least half of the masks.
* ``union_mask``: mean of the normalised vectors, and the dimensions kept by any mask.

With one text per class all four are equal.

Shape letters: K rows, C classes, T texts of a class, D joint embedding, L tokens, W text width.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from smartclip_det.core.errors import UserError, check_choice, unknown_names
from smartclip_det.core.prompts import words
from smartclip_det.core.scoring_policy import TEMPLATE_ORDERS
from smartclip_det.core.similarity import binary_masks
from smartclip_det.core.text_bank import TextBank
from smartclip_det.core.vocabularies import VOCABULARIES
from smartclip_det.models.template_sets import class_prompts
from smartclip_det.models.towers.encoder import Encoder
from smartclip_det.models.towers.source import load_towers
from smartclip_det.models.towers.text_encoding import EncodedTexts, encode_texts, mask_probabilities
from smartclip_det.utils.files import default_cache_dir as default_cache_dir
from smartclip_det.utils.notes import note
from smartclip_det.utils.parallel import on_rank_zero

BACKGROUND = "background"


class TextCache:
    """Disk cache of encoded texts, keyed by everything that determines their value; safe for concurrent processes.

    Each batch is committed when it is done, so an interrupted run loses at most one batch.
    """

    def __init__(self, folder: Path, provenance: Mapping[str, str]) -> None:
        self._salt = hashlib.sha256(json.dumps(dict(provenance), sort_keys=True).encode())
        path = folder / f"texts_{provenance['checkpoint_hash'][:8]}.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60)
            self._db.execute("CREATE TABLE IF NOT EXISTS texts (key TEXT PRIMARY KEY, value BLOB NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"The cache of encoded texts at {path} cannot be used ({error}). Delete the file, or set "
                "SMARTCLIP_DET_CACHE to a writable folder."
            ) from error

    def _key(self, unit: Sequence[str]) -> str:
        digest = self._salt.copy()
        for text in unit:
            # With a length prefix, so that different lists of texts never hash alike.
            digest.update(b"%d:" % len(text) + text.encode())
        return digest.hexdigest()

    def get(self, units: Sequence[Sequence[str]]) -> list[Tensor | None]:
        """For each unit ``[2, D]`` vector and mask probabilities, or None."""
        keys = [self._key(u) for u in units]
        cached: dict[str, bytes] = {}
        for start in range(0, len(keys), 500):
            some = keys[start : start + 500]
            marks = ", ".join("?" * len(some))
            cached.update(self._db.execute(f"SELECT key, value FROM texts WHERE key IN ({marks})", some))
        return [
            torch.frombuffer(bytearray(cached[k]), dtype=torch.float32).view(2, -1) if k in cached else None
            for k in keys
        ]

    def put(self, units: Sequence[Sequence[str]], values: Tensor) -> None:
        """Store ``[N, 2, D]`` values of N units."""
        rows = [(self._key(u), v.contiguous().numpy().tobytes()) for u, v in zip(units, values, strict=True)]
        with self._db:
            self._db.executemany("INSERT OR REPLACE INTO texts VALUES (?, ?)", rows)

    def close(self) -> None:
        """Close the database."""
        self._db.close()


def build_bank(
    encoder: Encoder,
    names: Sequence[str],
    *,
    templates: str | Sequence[str] = "photo",
    template_order: str = "average_state",
    synonyms: Mapping[str, Sequence[str]] | None = None,
    seen: Sequence[str] | None = None,
    cache_dir: str | Path | None = None,
    batch_size: int = 256,
    progress: bool = True,
) -> TextBank:
    """Encode a vocabulary.

    Under ``torch.distributed`` rank 0 encodes and the others receive its bank.

    Args:
        encoder: the towers, on any device.
        names: C unique class names.
        templates: a named set (:mod:`smartclip_det.models.template_sets`), or a list of templates.
        template_order: see the module docstring.
        synonyms: further names of a class; their texts are added to those of the class.
        seen: names that detection training may use; None: all.
        cache_dir: folder of the disk cache; None: no cache.
        batch_size: texts per forward pass.
        progress: show a progress bar on rank 0.

    Returns:
        A bank on the CPU in fp32, with a ``background`` row made with the same templates.

    Raises:
        UserError: for empty or repeated names, unknown templates or orders, or texts over the token limit.
    """
    check_choice("template_order", template_order, TEMPLATE_ORDERS)
    names = _check_names("names", names)
    twice = sorted(n for n, count in Counter(names).items() if count > 1)
    if twice:
        raise UserError(f"The vocabulary repeats names: {', '.join(twice[:5])}.")
    synonyms = {n: _check_names(f"synonyms of {n!r}", s) for n, s in (synonyms or {}).items()}
    unknown = sorted(set(synonyms) - set(names))
    if unknown:
        raise UserError(f"Synonyms are given for names that are not in the vocabulary: {', '.join(unknown[:5])}.")

    marked = [n for n in names if words(n) != n]
    if marked:
        note(
            f"{len(marked)} class names have separators; prompts use {words(marked[0])!r} for {marked[0]!r} and so on. "
            "The class names do not change."
        )

    def encode() -> TextBank:
        groups = [class_prompts([n, *synonyms.get(n, ())], templates) for n in [*names, BACKGROUND]]
        texts = [tuple(t for prompts in group for t in prompts) for group in groups]
        return _encode_classes(encoder, names, texts, templates, template_order, cache_dir, batch_size, progress)

    bank = on_rank_zero(encode)
    return bank if seen is None else bank.with_seen(seen)


def _encode_classes(
    encoder: Encoder,
    names: list[str],
    texts: list[tuple[str, ...]],
    templates: str | Sequence[str],
    order: str,
    cache_dir: str | Path | None,
    batch_size: int,
    progress: bool,
) -> TextBank:
    split = order == "per_template"
    units = [(t,) for group in texts for t in group] if split else texts
    label = templates if isinstance(templates, str) else json.dumps(list(templates))
    provenance = {**encoder.provenance(), "template_order": order, "templates": label}
    # The key holds the texts themselves and not the name of the template set: two sets may share texts.
    cache_facts = {**encoder.provenance(), "template_order": "per_template" if split else order}
    cache = TextCache(Path(cache_dir), cache_facts) if cache_dir is not None else None
    try:
        values = _encode_units(encoder, units, order, cache, batch_size, progress)
    finally:
        if cache is not None:
            cache.close()
    embeds, probs = values[:, 0], values[:, 1]
    masks = binary_masks(probs)
    rows = [c for c, group in enumerate(texts) for _ in (group if split else [group])]
    count = sum(1 for c in rows if c < len(names))
    background = TextBank(
        (BACKGROUND,),
        embeds[count:],
        masks[count:],
        texts=[" | ".join(u) for u in units[count:]],  # type: ignore[arg-type]
        class_index=torch.zeros(len(units) - count),
        mask_probs=probs[count:],
    )
    return TextBank(
        names=tuple(names),
        embeds=embeds[:count],
        masks=masks[:count],
        texts=tuple(" | ".join(u) for u in units[:count]),
        class_index=torch.tensor(rows[:count], dtype=torch.long),
        mask_probs=probs[:count],
        provenance=provenance,
        background=background,
    )


def _encode_units(
    encoder: Encoder,
    units: Sequence[tuple[str, ...]],
    order: str,
    cache: TextCache | None,
    batch_size: int,
    progress: bool,
) -> Tensor:
    """``[N, 2, D]`` vector and mask probabilities of N units, from the cache or the towers."""
    values_of: list[Tensor | None] = [None] * len(units) if cache is None else cache.get(units)
    missing = [i for i, v in enumerate(values_of) if v is None]
    batches = list(_batches(units, missing, batch_size))
    bar = None
    if progress and len(batches) > 1:
        from tqdm import tqdm

        bar = tqdm(total=len(missing), desc="encoding texts", unit="class")
    for batch in batches:
        values = _encode_batch(encoder, [units[i] for i in batch], order)
        for i, value in zip(batch, values, strict=True):
            values_of[i] = value
        if cache is not None:
            cache.put([units[i] for i in batch], values)
        if bar is not None:
            bar.update(len(batch))
    if bar is not None:
        bar.close()
    return torch.stack([v for v in values_of if v is not None])


def _batches(units: Sequence[tuple[str, ...]], missing: Sequence[int], size: int) -> Iterator[list[int]]:
    batch: list[int] = []
    texts = 0
    for i in missing:
        if batch and texts + len(units[i]) > size:
            yield batch
            batch, texts = [], 0
        batch.append(i)
        texts += len(units[i])
    if batch:
        yield batch


@torch.no_grad()
def _encode_batch(encoder: Encoder, units: Sequence[tuple[str, ...]], order: str) -> Tensor:
    encoded = encode_texts(encoder, [t for unit in units for t in unit])
    embeds = functional.normalize(encoded.embeds, dim=-1)
    values, start = [], 0
    for unit in units:
        rows = slice(start, start + len(unit))
        start += len(unit)
        vector = functional.normalize(embeds[rows].mean(dim=0), dim=0)
        values.append(torch.stack([vector, _unit_mask(encoder, encoded, rows, order)]))
    return torch.stack(values).cpu()


def _unit_mask(encoder: Encoder, encoded: EncodedTexts, rows: slice, order: str) -> Tensor:
    """``[D]`` mask probabilities of one unit, whose T texts are the given rows of ``encoded``."""
    if not encoded.has_masks or rows.stop - rows.start == 1:
        return encoded.mask_probs[rows.start]
    if order == "average_mask":
        return encoded.masks[rows].mean(dim=0)
    if order == "union_mask":
        return encoded.masks[rows].amax(dim=0)
    assert encoded.states is not None
    mean, any_keep = _average_states(encoded.states[rows], encoded.keep[rows], encoder.config.mask_pad)
    return mask_probabilities(encoder.mask_logits(mean, any_keep), encoded.embeds[:1])[0]


def _average_states(states: Tensor, keep: Tensor, mask_pad: str) -> tuple[Tensor, Tensor]:
    """Mean token states ``[1, L, W]`` over T texts, position by position.

    If padding is ignored, a position is averaged over the texts that reach it.
    """
    if mask_pad == "include":
        return states.mean(dim=0, keepdim=True), keep.any(dim=0, keepdim=True)
    weight = keep.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(0, keepdim=True) / weight.sum(0, keepdim=True).clamp(min=1), keep.any(0, keepdim=True)


def _check_names(what: str, names: Sequence[str]) -> list[str]:
    """Validate a list of strings; a single string is not split into letters."""
    if isinstance(names, str) or not all(isinstance(n, str) for n in names):
        raise UserError(f"{what} must be a list of strings; given {names!r:.80}.")
    return list(names)


def read_vocabulary(path: str | Path) -> list[str]:
    """Read class names from a text file (one per line) or a JSON list; blank lines are skipped.

    Raises:
        UserError: for a missing file, a JSON file that is not a list of strings, or an empty list.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No vocabulary file at {path}. Use a .txt file with one name per line, or a .json list.")
    try:
        content = path.read_text(encoding="utf-8-sig")
        names = json.loads(content) if path.suffix == ".json" else None
    except ValueError as error:
        raise UserError(
            f"{path} is not readable UTF-8 {'JSON' if path.suffix == '.json' else 'text'} ({error})."
        ) from error
    if path.suffix == ".json":
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise UserError(f"{path} must contain a JSON list of strings.")
    else:
        names = [line.strip() for line in content.splitlines() if line.strip()]
    if not names:
        raise UserError(f"{path} contains no names.")
    return names


def resolve_names(names: str | Sequence[str]) -> list[str]:
    """Class names from a list, a vocabulary file, or the name of a known vocabulary (``coco_80``, ...)."""
    if not isinstance(names, str):
        return list(names)
    if names in VOCABULARIES:
        return list(VOCABULARIES[names])
    if names.endswith((".txt", ".json")):
        return read_vocabulary(names)
    raise unknown_names("vocabulary", [names], VOCABULARIES, "Use a known name, a .txt or .json file, or a list.")


def bank_from_config(config: Mapping[str, Any], template_order: str = "average_state") -> TextBank:
    """Build a bank from ``dict(towers=..., names=..., templates=..., seen=..., cache_dir=...)``."""
    options = dict(config)
    encoder = load_towers(options.pop("towers"))
    names = resolve_names(options.pop("names"))
    seen = options.pop("seen", None)
    return build_bank(
        encoder, names, seen=None if seen is None else resolve_names(seen), template_order=template_order, **options
    )
