"""Published results that readable checkpoints must reproduce, with tolerances.

Recalls at 1 are in percent, image to text and text to image; so is accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from smartclip_det.core.errors import check_choice
from smartclip_det.models.zoo.names import registry


@dataclass(frozen=True)
class PublishedNumber:
    """A published result.

    Attributes:
        set: retrieval protocol, or ``imagenet`` for zero-shot top-1 with 80 templates.
        metric: name in result files.
        percent: published value.
        tolerance: maximum difference in percentage points.
    """

    set: str
    metric: str
    percent: float
    tolerance: float = 0.3


#: With 1,000 texts each text is 0.1 points; preprocessing and fp16 change a few. First sentences are split differently.
_TOLERANCES = {"urban1k": 0.6, "sharegpt4v-1k": 0.6, "sharegpt4v-1k-first": 1.5}


def _published_numbers(published: Mapping[str, list[float]]) -> list[PublishedNumber]:
    out = []
    for name, percents in published.items():
        metrics = ("top1_off",) if name == "imagenet" else ("i2t_r1_off", "t2i_r1_off")
        out += [PublishedNumber(name, m, p, _TOLERANCES.get(name, 0.3)) for m, p in zip(metrics, percents, strict=True)]
    return out


#: Results by the name of the weights; the registry lists their sources.
PUBLISHED: dict[str, list[PublishedNumber]] = {
    n: _published_numbers(w.published) for n, w in registry().items() if w.published and w.kind == "towers"
}


def published_values(model: str, sets: list[str]) -> list[PublishedNumber]:
    """The published results of a model on some sets; errors for unknown names list the nearest ones."""
    known = PUBLISHED[check_choice("model", model, PUBLISHED)]
    names = {a.set for a in known}
    for name in sets:
        check_choice(f"set of {model}", name, names)
    return [a for a in known if a.set in sets]


def verdict(published: PublishedNumber, measured: float) -> dict[str, float | str | bool]:
    """Compare a measured fraction in [0, 1] with a published result."""
    difference = 100 * measured - published.percent
    # Round-off must not fail a difference equal to the tolerance.
    return {
        "set": published.set,
        "metric": published.metric,
        "published": published.percent,
        "measured": 100 * measured,
        "difference": difference,
        "tolerance": published.tolerance,
        "passed": abs(difference) <= published.tolerance + 1e-9,
    }
