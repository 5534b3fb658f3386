"""Counts of full referring expression sets, to detect incomplete or wrong files.

RefCOCO and RefCOCO+: Yu et al. (arXiv 1608.00272) and the refer toolbox; RefCOCOg: Mao et al. (arXiv 1511.02283);
gRefCOCO: Liu et al. (arXiv 2306.00968).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.formats.expressions.record import Expression

#: Split name for counts of the whole set.
WHOLE = "all"
TARGETS = ("none", "one", "several")


@dataclass(frozen=True)
class FullSet:
    """Expected counts by split, or for :data:`WHOLE`; missing counts are not checked.

    Attributes:
        splits: splits of the set.
        sentences: sentences by split.
        images: images by split; object-wise partitions share images between splits.
        objects: distinct annotations by split, checked in files with annotation ids.
        targets: sentences with no, one and several targets, over all splits.
        shared_images: whether training images also occur in val and test.
    """

    splits: tuple[str, ...]
    sentences: Mapping[str, int] = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)
    objects: Mapping[str, int] = field(default_factory=dict)
    targets: Mapping[str, int] = field(default_factory=dict)
    shared_images: bool = False


def _by_split(splits: Sequence[str], shared_images: bool = False, **counts: Sequence[int]) -> FullSet:
    named: dict[str, Any] = {what: dict(zip(splits, numbers, strict=True)) for what, numbers in counts.items()}
    return FullSet(tuple(splits), shared_images=shared_images, **named)


_UNC, _TEST = ("train", "val", "testA", "testB"), ("train", "val", "test")
FULL_SETS: dict[str, FullSet] = {
    "refcoco-unc": _by_split(
        _UNC,
        sentences=(120_624, 10_834, 5657, 5095),
        images=(16_994, 1500, 750, 750),
        objects=(42_404, 3811, 1975, 1810),
    ),
    "refcoco+-unc": _by_split(
        _UNC,
        sentences=(120_191, 10_758, 5726, 4889),
        images=(16_992, 1500, 750, 750),
        objects=(42_278, 3805, 1975, 1798),
    ),
    "refcocog-umd": _by_split(
        _TEST, sentences=(80_512, 4896, 9602), images=(21_899, 1300, 2600), objects=(42_226, 2573, 5023)
    ),
    "refcocog-google": _by_split(
        ("train", "val"), True, sentences=(85_474, 9536), images=(24_698, 4650), objects=(44_822, 5000)
    ),
    "refcoco-google": _by_split(_TEST, True, images=(19_213, 4559, 4527), objects=(40_000, 5000, 5000)),
    "grefcoco-unc": FullSet(
        (WHOLE,),
        {WHOLE: 278_232},
        {WHOLE: 19_994},
        {WHOLE: 60_287},
        targets=dict(zip(TARGETS, (32_202, 166_008, 80_022), strict=True)),
    ),
    # TransVG's files.
    "flickr-transvg": FullSet(_TEST, sentences={"train": 427_193}),
    "referit-transvg": FullSet(_TEST, sentences={"test": 60_103}),
    # val and test together.
    "ref-l4": FullSet((WHOLE,), {WHOLE: 45_341}),
}


def check_counts(name: str, expressions: Sequence[Expression]) -> dict[str, int]:
    """Check counts against the full set.

    Returns sentences by split, and by number of targets for sets where it varies.

    Args:
        name: set in :data:`FULL_SETS`.
        expressions: all splits, or some complete ones; all for sets counted as a whole.

    Raises:
        UserError: for different numbers of sentences, images, objects or targets, or an unknown split.
    """
    full = FULL_SETS[check_choice("set", name, FULL_SETS)]
    groups: dict[str, list[Expression]] = {}
    for e in expressions:
        groups.setdefault(WHOLE if WHOLE in full.splits else e.split, []).append(e)
    unknown = [s or "no split" for s in groups if s not in full.splits]
    if unknown:
        raise UserError(f"{name} has the splits {', '.join(full.splits)}; the file has {', '.join(unknown)}.")
    wrong = [line for split, rows in groups.items() for line in _wrong(full, split, rows)]
    targets = Counter(TARGETS[min(2, len(e.boxes))] for e in expressions)
    wrong += _unequal(full.targets, {t: targets[t] for t in full.targets}, "with {} target")
    if wrong:
        raise UserError(f"These are not the sentences of {name}: {'; '.join(wrong)}.")
    return {split: len(rows) for split, rows in groups.items()} | {t: targets[t] for t in full.targets}


def _wrong(full: FullSet, split: str, rows: Sequence[Expression]) -> list[str]:
    """List the counts of a split that differ from the full set."""
    ids = {i for e in rows for i in e.ann_ids}
    named = all(len(e.ann_ids) == len(e.boxes) for e in rows) and bool(ids)
    return [
        *_unequal(full.sentences, {split: len(rows)}, "sentences of {}"),
        *_unequal(full.images, {split: len({e.image_id for e in rows})}, "images of {}"),
        *(_unequal(full.objects, {split: len(ids)}, "objects of {}") if named else []),
    ]


def _unequal(expected: Mapping[str, int], counts: Mapping[str, int], what: str) -> list[str]:
    return [
        f"{what.format(k)}: {n:,} (of {expected[k]:,})" for k, n in counts.items() if k in expected and expected[k] != n
    ]
