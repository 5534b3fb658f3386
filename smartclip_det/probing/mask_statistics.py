"""Statistics of hard masks, and tests of whether masks compose like sets of concepts (arXiv 2507.22264, Theorem 4.3).

Shape letters: K texts, D joint embedding, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smartclip_det.core.errors import UserError


@dataclass
class Occupancy:
    """Usage of D dimensions by K masks.

    Attributes:
        density: ``[K]`` fraction of dimensions that each text keeps.
        frequency: ``[D]`` fraction of texts that keep each dimension.
    """

    density: Tensor
    frequency: Tensor

    def facts(self) -> dict[str, float]:
        """Mean and range of densities, numbers of dimensions kept by no text and by all texts, and mask entropy.

        ``entropy`` is the mean over dimensions of the binary entropy of their frequency, in bits: 0 if all masks are
        equal.
        """
        p = self.frequency.double().clamp(1e-12, 1 - 1e-12)
        bits = -(p * p.log2() + (1 - p) * (1 - p).log2())
        return {
            "texts": float(len(self.density)),
            "dimensions": float(len(self.frequency)),
            "density_mean": float(self.density.mean()),
            "density_min": float(self.density.min()),
            "density_max": float(self.density.max()),
            "dead": float((self.frequency == 0).sum()),
            "always_on": float((self.frequency == 1).sum()),
            "entropy": float(bits.mean()),
        }


def occupancy(masks: Tensor) -> Occupancy:
    """Occupancy of hard masks ``[K, D]``.

    Raises:
        UserError: if there are no masks, or values other than 0 and 1.
    """
    hard = _checked(masks)
    return Occupancy(hard.mean(dim=1), hard.mean(dim=0))


def _checked(masks: Tensor) -> Tensor:
    if masks.dim() != 2 or not len(masks):
        raise UserError(f"Masks must be [K, D] with at least one text; given {list(masks.shape)}.")
    hard = masks.double()
    if not ((hard == 0) | (hard == 1)).all():
        raise UserError("Masks must be hard: 0 or 1.")
    return hard


def containment(parts: Tensor, wholes: Tensor) -> Tensor:
    """``[P]`` fraction of each part's dimensions that its whole keeps; 1 if the part's mask is a subset of the whole's.

    Args:
        parts: ``[P, D]`` hard masks, e.g. of the first sentences.
        wholes: ``[P, D]`` hard masks, e.g. of the whole captions.
    """
    inside, kept = (_checked(parts) * _checked(wholes)).sum(dim=1), parts.double().sum(dim=1)
    return torch.where(kept > 0, inside / kept.clamp(min=1), torch.ones_like(kept))


def jaccard(a: Tensor, b: Tensor) -> Tensor:
    """``[P]`` row-wise intersection over union of hard masks ``[P, D]``; 1 if both are empty."""
    a, b = a.double(), b.double()
    union = torch.maximum(a, b).sum(dim=1)
    return torch.where(union > 0, (a * b).sum(dim=1) / union.clamp(min=1), torch.ones_like(union))


def kind_overlap(masks: Tensor, kinds: Sequence[str]) -> dict[str, float]:
    """Mean :func:`jaccard` of the masks of two different words, by the kinds of the words.

    Args:
        masks: ``[K, D]`` hard masks.
        kinds: kind of each of the K words, e.g. ``colour`` and ``shape``.

    Returns:
        ``same_KIND`` for each kind with at least two words and ``different_KIND_OTHER`` for each pair of kinds;
        ``same`` and ``different`` are the means over all such pairs of words.

    Raises:
        UserError: for masks that are not hard, or if the numbers of masks and kinds differ.
    """
    hard = _checked(masks)
    if len(kinds) != len(hard):
        raise UserError(f"{len(hard)} masks but {len(kinds)} kinds.")
    pairs = torch.triu_indices(len(hard), len(hard), offset=1)
    likeness = jaccard(hard[pairs[0]], hard[pairs[1]]).tolist()
    order = list(dict.fromkeys(kinds))
    found: dict[str, list[float]] = {}
    for (a, b), value in zip(pairs.t().tolist(), likeness, strict=True):
        first, second = sorted((kinds[a], kinds[b]), key=order.index)
        names = ("same", f"same_{first}") if first == second else ("different", f"different_{first}_{second}")
        for name in names:
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def expected_jaccard(a: Tensor, b: Tensor) -> float:
    """Jaccard index of independent masks with these densities: the chance level of :func:`algebra`."""
    p, q = float(a.double().mean()), float(b.double().mean())
    both = p * q
    return both / (p + q - both) if p + q > both else 1.0


def algebra(single: Tensor, other: Tensor, joined: Tensor, joined_elsewhere: Tensor) -> dict[str, float]:
    """Test whether masks of joined texts are unions, and their intersections the mask of the shared concept.

    Args:
        single: ``[P, D]`` masks of texts a.
        other: ``[P, D]`` masks of texts b.
        joined: ``[P, D]`` masks of texts that contain a and b.
        joined_elsewhere: ``[P, D]`` masks of texts that contain a and a third concept.

    Returns:
        ``union``: mean Jaccard index of joined and the union of a and b; ``intersection``: that of a and the
        intersection of both joined texts; each with ``_chance``, the value for independent masks of equal densities.
    """
    union, shared = torch.maximum(single, other), joined * joined_elsewhere
    return {
        "union": float(jaccard(joined, union).mean()),
        "union_chance": expected_jaccard(joined, union),
        "intersection": float(jaccard(shared, single).mean()),
        "intersection_chance": expected_jaccard(shared, single),
    }


def distinctive(masks: Tensor, names: Sequence[str], count: int = 5) -> list[tuple[int, float, list[str]]]:
    """Dimensions that split the texts most evenly, and the texts that keep each.

    Args:
        masks: ``[K, D]`` hard masks.
        names: the K texts.
        count: number of dimensions.

    Returns:
        For each dimension: its index, its frequency, and up to 12 texts that keep it (ordered by rarity).
    """
    hard = _checked(masks)
    if len(names) != len(hard):
        raise UserError(f"{len(hard)} masks but {len(names)} texts.")
    frequency = hard.mean(dim=0)
    order = (frequency - 0.5).abs().argsort()[:count]
    return [
        (int(d), float(frequency[d]), [names[k] for k in hard[:, d].nonzero().flatten()[:12].tolist()]) for d in order
    ]


def similarity_order(masks: Tensor) -> list[int]:
    """Order of K texts that puts similar masks next to each other (average linkage on Jaccard distance)."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import pdist

    hard = _checked(masks)
    if len(hard) < 3:
        return list(range(len(hard)))
    return [int(i) for i in leaves_list(linkage(pdist(hard.bool().numpy(), "jaccard"), "average"))]
