"""TextBank: the only object that passes from the text side to the vision side.

Heads know nothing about strings, tokenizers or the number of classes; they receive a bank. A bank holds K text rows
grouped into C classes (templates, synonyms). A label is a class index into the active bank.
Shape letters: R regions, K text rows, C classes, D joint embedding.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smartclip_det.core.errors import UserError, unknown_names
from smartclip_det.core.image_queries import picture_row
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.similarity import DegenerateCounter, donor_rows, mask_ceiling, masked_cosine, resolve_masks

#: Maps N ``(image, box)`` pairs to ``[N, D]`` vectors of the boxes and ``[N, D]`` vectors of the full images.
PictureEncoder = Callable[[Sequence[tuple[Any, Sequence[float]]]], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class TextBank:
    """C classes described by K text embeddings and their masks.

    Attributes:
        names: C class names, unique.
        embeds: ``[K, D]`` text vectors (normalised if made by ``models.vocabulary``).
        masks: ``[K, D]`` masks in [0, 1], usually binary.
        texts: the K row texts as encoded; default: the class name of each row.
        class_index: ``[K]`` class of each row, in 0..C-1, every class at least once; default: one row per class.
        seen: ``[C]`` True for classes that detection training may use (base classes); default: all True.
        mask_probs: ``[K, D]`` probabilities of ``masks``, for the ``soft`` mode; default: ``masks``.
        provenance: origin of the rows: checkpoint hash, template, mask_pad, template order.
        background: a bank of one class, used as background by policies with a text background.
        picture_encoder: encodes the images of :meth:`with_images`; set on banks made by a predictor. Not saved.
        part_of: for a chunk made by :meth:`parts`: the full bank, and the rows of the chunk in it.
    """

    names: tuple[str, ...]
    embeds: Tensor
    masks: Tensor
    texts: tuple[str, ...] = ()
    class_index: Tensor = None  # type: ignore[assignment]  # filled in __post_init__
    seen: Tensor = None  # type: ignore[assignment]  # filled in __post_init__
    mask_probs: Tensor | None = None
    provenance: dict[str, str] = field(default_factory=dict)
    background: TextBank | None = None
    picture_encoder: PictureEncoder | None = field(default=None, repr=False)
    part_of: tuple[TextBank, Tensor] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        names = tuple(self.names)
        device = self.embeds.device
        index = torch.arange(len(names)) if self.class_index is None else torch.as_tensor(self.class_index)
        seen = torch.ones(len(names), dtype=torch.bool) if self.seen is None else torch.as_tensor(self.seen)
        if not self.texts and len(index):
            _check_index(index, names, self.embeds)
            object.__setattr__(self, "texts", tuple(names[i] for i in index.tolist()))
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "texts", tuple(self.texts))
        # On the host, where it is indexed: reading it from a GPU would synchronise every time.
        object.__setattr__(self, "class_index", index.long().cpu())
        object.__setattr__(self, "seen", seen.bool().to(device))
        object.__setattr__(self, "provenance", {str(k): str(v) for k, v in self.provenance.items()})
        self._validate()

    def _validate(self) -> None:
        if self.embeds.dim() != 2 or self.masks.shape != self.embeds.shape:
            raise UserError(
                "A bank needs embeds [K, D] and masks of the same shape; given "
                f"{list(self.embeds.shape)} and {list(self.masks.shape)}."
            )
        if self.mask_probs is not None and self.mask_probs.shape != self.embeds.shape:
            raise UserError(f"mask_probs must be {list(self.embeds.shape)}; given {list(self.mask_probs.shape)}.")
        if len(set(self.names)) != len(self.names):
            twice = sorted(n for n, count in Counter(self.names).items() if count > 1)
            raise UserError(f"Class names of a bank must be unique; duplicates: {', '.join(twice[:5])}.")
        if len(self.texts) != len(self.embeds) or len(self.seen) != len(self.names):
            raise UserError(
                f"{len(self.embeds)} rows need as many texts ({len(self.texts)} given) and {len(self.names)} "
                f"classes as many seen flags ({len(self.seen)} given)."
            )
        _check_index(self.class_index, self.names, self.embeds)

    def __len__(self) -> int:
        """Number of classes C; also the index of the background."""
        return len(self.names)

    @property
    def dim(self) -> int:
        """Joint embedding dimension D."""
        return self.embeds.shape[1]

    def index_of(self, name: str) -> int:
        """Label of a class name; an unknown name is an error that lists the closest names."""
        try:
            return self.names.index(name)
        except ValueError:
            raise unknown_names("class names", [name], self.names, "Names must match the bank exactly.") from None

    def select(self, names: Iterable[str]) -> TextBank:
        """The bank restricted to the given classes, in the given order, with all their rows."""
        names = list(names)
        known = {name: c for c, name in enumerate(self.names)}
        missing = [n for n in names if n not in known]
        if missing:
            raise unknown_names("class names", missing, self.names, "Names must match the bank exactly.")
        classes = [known[n] for n in names]
        by_class: dict[int, list[int]] = {}
        for row, c in enumerate(self.class_index.tolist()):
            by_class.setdefault(c, []).append(row)
        rows = [row for c in classes for row in by_class[c]]
        index = torch.tensor([new for new, c in enumerate(classes) for _ in by_class[c]], dtype=torch.long)
        # One host-to-device copy for both indices.
        selected = torch.tensor(rows + classes, device=self.embeds.device)
        row_index, class_rows = selected[: len(rows)], selected[len(rows) :]
        return replace(
            self,
            names=tuple(names),
            embeds=self.embeds[row_index],
            masks=self.masks[row_index],
            texts=tuple(self.texts[r] for r in rows),
            class_index=index,
            seen=self.seen[class_rows],
            mask_probs=None if self.mask_probs is None else self.mask_probs[row_index],
        )

    def with_seen(self, seen_names: Iterable[str]) -> TextBank:
        """A copy with exactly ``seen_names`` marked as seen; an unknown name is an error."""
        wanted = set(seen_names)
        missing = sorted(wanted - set(self.names))
        if missing:
            raise unknown_names("seen classes", missing, self.names, "The seen list must use names of the bank.")
        return replace(self, seen=torch.tensor([n in wanted for n in self.names], dtype=torch.bool))

    def with_images(
        self,
        name: str,
        pictures: Sequence[tuple[Any, Sequence[float]]],
        *,
        like: str | None = None,
        contrast: bool = True,
        encoder: PictureEncoder | None = None,
    ) -> TextBank:
        """A copy with one row made from images, for a new unseen class or added to the class of that name.

        The row is computed by :func:`picture_row` and recorded in the provenance.

        Args:
            name: name of the class.
            pictures: N pairs of an image (path, PIL image or array) and an xyxy box in its pixels.
            like: a class of this bank whose mask the row uses; default: a mask of ones, since no text selects
                dimensions.
            contrast: subtract the full image from the box, so that scores are comparable to those of texts. With False
                the row is the plain box vector, whose cosine with any image is far above those of texts.
            encoder: image encoder; default: that of the predictor that made the bank.

        Raises:
            UserError: for no images, an empty name, an unknown ``like``, or a bank without an image encoder.
        """
        encode = encoder or self.picture_encoder
        if encode is None:
            raise UserError(
                "This bank has no image encoder. Use the bank that Predictor.set_vocabulary returns, or pass "
                "encoder=predictor.picture_vectors."
            )
        if not isinstance(name, str) or not name.strip() or not len(pictures):
            raise UserError(f"A row from images needs a name and at least one image; given {name!r:.40}.")
        masks = None if like is None else self.masks[self.class_index == self.index_of(like)]
        boxes, full_images = (v.to(self.embeds) for v in encode(pictures))
        row, mask = picture_row(boxes, full_images, masks, contrast=contrast)
        known = name in self.names
        label = self.index_of(name) if known else len(self)
        probs = None if self.mask_probs is None else torch.cat([self.mask_probs, mask[None]])
        return replace(
            self,
            names=self.names if known else (*self.names, name),
            embeds=torch.cat([self.embeds, row[None]]),
            masks=torch.cat([self.masks, mask[None]]),
            texts=(*self.texts, f"{name} ({len(pictures)} pictures)"),
            class_index=torch.cat([self.class_index, self.class_index.new_tensor([label])]),
            seen=self.seen if known else torch.cat([self.seen, self.seen.new_tensor([False])]),
            mask_probs=probs,
            provenance={**self.provenance, "rows_from_pictures": "contrast" if contrast else "plain"},
        )

    @property
    def picture_names(self) -> tuple[str, ...]:
        """Names of the classes that have a row from images, see :meth:`with_images`."""
        if "rows_from_pictures" not in self.provenance:
            return ()
        rows = zip(self.texts, self.class_index.tolist(), strict=True)
        classes = {c for text, c in rows if re.fullmatch(rf"{re.escape(self.names[c])} \(\d+ pictures\)", text)}
        return tuple(self.names[c] for c in sorted(classes))

    def text_shuffled(self) -> TextBank:
        """A control: each class gets the rows of another class (fixed by the texts) under its own name.

        Raises:
            UserError: for a bank with a single class.
        """
        donors = donor_rows(self.texts, self.class_index).to(self.embeds.device)
        probs = None if self.mask_probs is None else self.mask_probs[donors]
        return replace(
            self,
            embeds=self.embeds[donors],
            masks=self.masks[donors],
            mask_probs=probs,
            provenance={**self.provenance, "control": "text_shuffled"},
        )

    def to(self, device: torch.device | str) -> TextBank:
        """The bank on another device (the same object if it is already there)."""
        if self.embeds.device == torch.device(device):
            return self
        probs = None if self.mask_probs is None else self.mask_probs.to(device)
        background = None if self.background is None else self.background.to(device)
        return replace(
            self, embeds=self.embeds.to(device), masks=self.masks.to(device), mask_probs=probs, background=background
        )

    @staticmethod
    def cat(banks: Sequence[TextBank]) -> TextBank:
        """Concatenate banks with disjoint classes; differing provenance values are joined with ``|``."""
        if not banks:
            raise UserError("TextBank.cat needs at least one bank.")
        if len({b.dim for b in banks}) > 1:
            raise UserError(f"Banks must have the same D to be joined; given {[b.dim for b in banks]}.")
        first = banks[0].embeds.device
        banks = [b.to(first) for b in banks]
        starts = list(accumulate((len(b) for b in banks), initial=0))[:-1]
        soft = any(b.mask_probs is not None for b in banks)
        keys = {k for b in banks for k in b.provenance}
        return TextBank(
            names=tuple(n for b in banks for n in b.names),
            embeds=torch.cat([b.embeds for b in banks]),
            masks=torch.cat([b.masks for b in banks]),
            texts=tuple(t for b in banks for t in b.texts),
            class_index=torch.cat([b.class_index + s for b, s in zip(banks, starts, strict=True)]),
            seen=torch.cat([b.seen for b in banks]),
            mask_probs=torch.cat([b.masks if b.mask_probs is None else b.mask_probs for b in banks]) if soft else None,
            provenance={k: "|".join(sorted({b.provenance.get(k, "") for b in banks})) for k in keys},
            background=banks[0].background,
            picture_encoder=banks[0].picture_encoder,
        )

    def resolved_masks(self, mask_mode: str) -> Tensor | None:
        """``[K, D]`` masks for a mask mode (see ``similarity.resolve_masks``), or None for ``off``."""
        if mask_mode not in self._masks_by_mode:
            if self.part_of is None:
                masks = resolve_masks(self.masks, mask_mode, self.texts, self.mask_probs, self.class_index)
            else:
                full_bank, rows = self.part_of
                masks = full_bank.resolved_masks(mask_mode)
                masks = None if masks is None else masks[rows]
            self._masks_by_mode[mask_mode] = masks
        return self._masks_by_mode[mask_mode]

    def class_mean(self, row_values: Tensor) -> Tensor:
        """Average ``[..., K]`` row values into ``[..., C]`` class values."""
        if row_values.shape[-1] == len(self) and self._one_row_each:
            return row_values
        index, counts = (v.to(row_values.device) for v in self._grouping)
        sums = row_values.new_zeros(*row_values.shape[:-1], len(self)).index_add_(-1, index, row_values)
        return sums / counts.to(row_values.dtype)

    def parts(self, size: int) -> list[TextBank]:
        """The bank in chunks of at most ``size`` classes, in order; cosines equal those of the full bank.

        Controls depend on the other classes, so a chunk takes its masks from the full bank. Cached.
        """
        if size not in self._parts_by_size:
            self._parts_by_size[size] = [self._part(a, min(a + size, len(self))) for a in range(0, len(self), size)]
        return self._parts_by_size[size]

    def _part(self, first: int, end: int) -> TextBank:
        inside = (self.class_index >= first) & (self.class_index < end)
        chosen = inside.nonzero().squeeze(1)
        rows = chosen.to(self.embeds.device)
        part = replace(
            self,
            names=self.names[first:end],
            embeds=self.embeds[rows],
            masks=self.masks[rows],
            texts=tuple(self.texts[r] for r in chosen.tolist()),
            class_index=self.class_index[chosen] - first,
            seen=self.seen[first:end],
            mask_probs=None if self.mask_probs is None else self.mask_probs[rows],
        )
        object.__setattr__(part, "part_of", (self, rows))
        return part

    # Cached, because scoring reads these for each image and reading from a GPU synchronises.

    @cached_property
    def all_seen(self) -> bool:
        """Whether every class is seen."""
        return bool(self.seen.all())

    @cached_property
    def _one_row_each(self) -> bool:
        return bool(torch.equal(self.class_index, torch.arange(len(self))))

    @cached_property
    def _grouping(self) -> tuple[Tensor, Tensor]:
        """``[K]`` class of each row and ``[C]`` number of rows of each class, on the device of the embeds."""
        counts = torch.bincount(self.class_index, minlength=len(self))
        return self.class_index.to(self.embeds.device), counts.to(self.embeds.device)

    @cached_property
    def _masks_by_mode(self) -> dict[str, Tensor | None]:
        return {}

    @cached_property
    def _parts_by_size(self) -> dict[int, list[TextBank]]:
        return {}

    def cosine(
        self,
        vectors: Tensor,
        policy: ScoringPolicy,
        *,
        mask_mode: str | None = None,
        counter: DegenerateCounter | None = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """``[R, C]`` calibrated class cosines of ``[R, D]`` vectors under a policy.

        The cosine of a class does not depend on the other classes (except for the control ``shuffled``).
        """
        mode = policy.mask_mode if mask_mode is None else mask_mode
        masks = self.resolved_masks(mode)
        rows = masked_cosine(
            vectors, self.embeds, masks, text_norm=policy.text_norm, chunk_size=chunk_size, counter=counter
        )
        if policy.calibration == "ceiling" and masks is not None and policy.text_norm == "full":
            ceiling = mask_ceiling(self.embeds, masks).clamp(min=1e-6)
            rows = rows / ceiling.to(rows.dtype)
        return self.class_mean(rows)

    def save(self, path: str | Path) -> None:
        """Write the bank as safetensors; binary masks take one byte per entry."""
        from smartclip_det.core.text_bank_io import write_bank

        write_bank(self, path)

    @staticmethod
    def load(path: str | Path) -> TextBank:
        """Read a bank written by :meth:`save`.

        Raises:
            UserError: if the file is missing or not a text bank.
        """
        from smartclip_det.core.text_bank_io import read_bank

        return read_bank(path)


def _check_index(index: Tensor, names: Sequence[str], embeds: Tensor) -> None:
    if index.dim() != 1 or len(index) != len(embeds):
        raise UserError(f"class_index must be [{len(embeds)}]; given {list(index.shape)}.")
    present = set(index.tolist())
    if present != set(range(len(names))):
        raise UserError(
            f"class_index must use every class 0..{len(names) - 1} at least once; it uses {len(present)} of "
            f"{len(names)} classes" + (f", from {min(present)} to {max(present)}." if present else ".")
        )
