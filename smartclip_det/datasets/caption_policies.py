"""Policies that draw the training text of an image. Pure functions of a record and a generator.

Sentences are split as in SmartCLIP's release (arXiv 2507.22264): newlines become spaces, ". " ends a sentence, and
sentences are joined with ". ".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.datasets.sides import swap_sides as swap_sides  # re-exported until the next version


def split_sentences(caption: str) -> list[str]:
    """Sentences of a caption; joining them with ". " restores it (except for newlines)."""
    return caption.replace("\n", " ").split(". ")


def prefix(long: str, short: Sequence[str], rng: np.random.Generator) -> str:
    """The first k sentences, k uniform in 1..n: the published policy of SmartCLIP."""
    sentences = split_sentences(long)
    return ". ".join(sentences[: int(rng.integers(1, len(sentences) + 1))])


def subset(long: str, short: Sequence[str], rng: np.random.Generator) -> str:
    """K sentences in order, k uniform in 1..n, with all sets of k equally likely."""
    sentences = split_sentences(long)
    count = int(rng.integers(1, len(sentences) + 1))
    return ". ".join(sentences[i] for i in sorted(rng.permutation(len(sentences))[:count].tolist()))


def drop_first(long: str, short: Sequence[str], rng: np.random.Generator) -> str:
    """A random subset of the sentences after the first one, which summarises (DeBias-CLIP, arXiv 2602.22419)."""
    sentences = split_sentences(long)
    return subset(". ".join(sentences[1:]) if len(sentences) > 1 else long, short, rng)


def full(long: str, short: Sequence[str], rng: np.random.Generator) -> str:
    """The full long caption."""
    return long.replace("\n", " ")


def one_short(long: str, short: Sequence[str], rng: np.random.Generator) -> str:
    """One of the short captions; without any, the first sentence of the long one (as in Long-CLIP)."""
    return short[int(rng.integers(len(short)))] if short else split_sentences(long)[0]


POLICIES: dict[str, Callable[[str, Sequence[str], np.random.Generator], str]] = {
    "prefix": prefix,
    "subset": subset,
    "drop-first": drop_first,
    "full": full,
    "short": one_short,
}


#: Policies that draw several texts per image, one for each contrast of a step.
PAIRS = {"full+short": ("full", "short")}


class CaptionPolicy:
    """Draws one policy by weight, then one text by that policy.

    Args:
        weights: a name in :data:`POLICIES`, or names with weights (``dict(prefix=0.5, short=0.5)``).

    Raises:
        UserError: for unknown names or weights that are not positive.
    """

    def __init__(self, weights: str | Mapping[str, float]) -> None:
        given = {weights: 1.0} if isinstance(weights, str) else dict(weights)
        self.names = [check_choice("captions", n, [*POLICIES, *PAIRS]) for n in given]
        if any(n in PAIRS for n in self.names):
            raise UserError(f"{', '.join(PAIRS)} draws several texts and cannot be mixed by weight: use it alone.")
        values = np.array(list(given.values()), dtype=float)
        if not len(values) or not (np.isfinite(values) & (values > 0)).all():
            raise UserError(f"captions needs policies with positive weights; given {given}.")
        self.chances = values / values.sum()

    def __call__(self, long: str, short: Sequence[str], rng: np.random.Generator) -> str:
        """Draw the text of one step; images without a long caption use one of their short ones instead."""
        name = self.names[int(rng.choice(len(self.names), p=self.chances))]
        return POLICIES[name](long or short[int(rng.integers(len(short)))], short, rng)


def policies_of(captions: str | Mapping[str, float] | Sequence[Any], count: int) -> list[CaptionPolicy]:
    """The policy of each text drawn for an image in one step.

    Args:
        captions: one policy for all texts, a name in :data:`PAIRS`, or a list with one policy per text.
        count: number of texts if ``captions`` is a single policy.
    """
    if isinstance(captions, str) and captions in PAIRS:
        captions = list(PAIRS[captions])
    if isinstance(captions, str | Mapping):
        if count < 1:
            raise UserError(f"texts.per_image must be at least 1; given {count}.")
        return [CaptionPolicy(captions)] * count
    if not captions:
        raise UserError("captions needs at least one policy.")
    return [CaptionPolicy(c) for c in captions]


def pad_left(tokens: Sequence[int], context_length: int, rng: np.random.Generator) -> list[int]:
    """Insert a random amount of padding (0) between the start token and the text, up to the context length.

    This also trains later positions with short texts (DeBias-CLIP, arXiv 2602.22419).
    """
    room = max(0, context_length - len(tokens))
    return [tokens[0], *[0] * int(rng.integers(room + 1)), *tokens[1:]]


def partial_caption(long: str, rng: np.random.Generator) -> str:
    """Half of the sentences (rounded down, at least one), in order: a caption with omissions."""
    sentences = split_sentences(long.rstrip(". "))
    count = max(1, len(sentences) // 2)
    return ". ".join(sentences[i] for i in sorted(rng.permutation(len(sentences))[:count].tolist()))
