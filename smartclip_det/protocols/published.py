"""Published numbers that a readable checkpoint must reproduce, with the width of what counts as equal.

Recalls in percent, image to text and text to image at 1; accuracy in percent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from smartclip_det.core.errors import check_choice
from smartclip_det.models.zoo.names import registry


@dataclass(frozen=True)
class PublishedNumber:
    """One number.

    Attributes:
        set: retrieval protocol, or ``imagenet`` for zero-shot top-1 with 80 templates.
        metric: name in our result files.
        percent: the published value.
        tolerance: largest difference in points that passes.
    """

    set: str
    metric: str
    percent: float
    tolerance: float = 0.3


#: 1,000 texts move by 0.1 points each; preprocessing and fp16 explain some of them. First sentences were cut by others.
_TOLERANCES = {"urban1k": 0.6, "sharegpt4v-1k": 0.6, "sharegpt4v-1k-first": 1.5}


def _published_numbers(published: Mapping[str, list[float]]) -> list[PublishedNumber]:
    out = []
    for name, percents in published.items():
        metrics = ("top1_off",) if name == "imagenet" else ("i2t_r1_off", "t2i_r1_off")
        out += [PublishedNumber(name, m, p, _TOLERANCES.get(name, 0.3)) for m, p in zip(metrics, percents, strict=True)]
    return out


#: By the name of the weights; the numbers stand with their sources in the registry.
PUBLISHED: dict[str, list[PublishedNumber]] = {
    n: _published_numbers(w.published) for n, w in registry().items() if w.published and w.kind == "towers"
}


def published_values(model: str, sets: list[str]) -> list[PublishedNumber]:
    """The published numbers of a model on some sets; unknown names raise with the nearest ones."""
    known = PUBLISHED[check_choice("model", model, PUBLISHED)]
    names = {a.set for a in known}
    for name in sets:
        check_choice(f"set of {model}", name, names)
    return [a for a in known if a.set in sets]


def verdict(published: PublishedNumber, measured: float) -> dict[str, float | str | bool]:
    """Whether a measured share in [0, 1] reproduces a published one."""
    difference = 100 * measured - published.percent
    # A difference of exactly the tolerance passes, whatever binary fractions make of it.
    return {
        "set": published.set,
        "metric": published.metric,
        "published": published.percent,
        "measured": 100 * measured,
        "difference": difference,
        "tolerance": published.tolerance,
        "passed": abs(difference) <= published.tolerance + 1e-9,
    }
