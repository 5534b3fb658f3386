"""Conclusions of the toy report, in words. Every sentence follows from the numbers by a rule in this module.

A difference counts as shown if its 95 % interval (paired bootstrap over the validation images) excludes zero. The
interval covers other images, not other seeds; for those, run ``smartclip-det study grid``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smartclip_det.studies.toy_measures import Gap

Gaps = Mapping[str, Gap]
#: Verdicts on novel shapes, by the ratio of their AP50 to that of the base shapes.
DETECTED = ((2 / 3, "are detected"), (1 / 3, "are partly detected"), (-math.inf, "are mostly missed"))
#: Verdicts on novel shapes, by the ratio of their AP50 to that of the larger control.
LEARNED = (
    (20.0, "This was learned from captions"),
    (3.0, "This was mostly learned from captions"),
    (-math.inf, "This run does not show that it was learned from captions"),
)
#: Differences below this count as small.
SMALL = 0.05
#: Mean mask overlap above which masks count as nearly identical.
NEARLY_ALIKE = 0.8
NOT_SHOWN = "this run does not show that the text's own mask matters"
#: For each question that a difference answers, the sentence of each outcome.
SENTENCES = {
    "own mask": {
        "above": "The text's own mask matters for {what}: with another text's mask results are worse ({gap}).",
        "below": "Another text's mask works even better for {what} ({gap}): {not_shown}.",
        "level": "Another text's mask works as well for {what} ({gap}): {not_shown}.",
        "unclear": "Inconclusive for {what}: too few images to separate the text's own mask from another "
        "text's ({gap}): {not_shown}.",
    },
    # With and without masks, for the same weights.
    "masks": {
        "above": "Without masks, the same weights are worse on {what} ({gap}).",
        "below": "Without masks, the same weights are better on {what} ({gap}): masks hurt here.",
        "level": "Without masks, the same weights are equally good on {what} ({gap}).",
        "unclear": "Inconclusive for {what}: too few images to separate masks on from masks off ({gap}).",
    },
    # At equal training steps: the comparison that matters to a user.
    "clip": {
        "above": "SmartCLIP is better than CLIP, trained for the same number of steps, on {what} ({gap}).",
        "below": "SmartCLIP is worse than CLIP, trained for the same number of steps, on {what} ({gap}).",
        "level": "SmartCLIP and CLIP, trained for the same number of steps, are equally good on {what} ({gap}).",
        "unclear": "Inconclusive for {what}: too few images to separate SmartCLIP from CLIP at equal steps ({gap}).",
    },
}
#: How the trained grounding head compares with zero-shot grounding.
HEAD = {
    "above": "is better",
    "below": "is worse",
    "level": "is not measurably different",
    "unclear": "is not measurably different",
}


def interval(gap: Gap) -> str:
    """Format a difference with its interval."""
    return f"difference {gap.value:+.3f}, interval {gap.low:+.3f} to {gap.high:+.3f}"


def level(gap: Gap) -> bool:
    """Whether both are equally good, i.e. the whole interval is small. Otherwise the result is inconclusive."""
    return max(abs(gap.low), abs(gap.high)) < SMALL


def outcome(gap: Gap) -> str:
    """Which sentence applies: ``above``, ``below``, ``level`` or ``unclear``."""
    if gap.above:
        return "above"
    if gap.below:
        return "below"
    return "level" if level(gap) else "unclear"


def conclude(question: str, gap: Gap, what: str) -> str:
    """Answer a question of :data:`SENTENCES` by a difference measured on ``what``."""
    return SENTENCES[question][outcome(gap)].format(what=what, gap=interval(gap), not_shown=NOT_SHOWN)


def first_reached(value: float, rules: Sequence[tuple[float, str]]) -> str:
    """Return the text of the first limit that a value reaches."""
    return next(text for limit, text in rules if value >= limit)


def alignment(gaps: Gaps) -> list[str]:
    """Conclusions of section 2."""
    clip, off = gaps["colour_shape clip"], gaps["colour_shape off"]
    if off.above and clip.above:
        head = "Masks help: masked SmartCLIP beats both its own unmasked scoring and CLIP."
    elif off.above:
        head = "SmartCLIP needs its masks, but this run does not show that it is better than CLIP."
    else:
        head = "This run does not show that masks help."
    parts = [
        head,
        conclude("clip", clip, "colour + shape"),
        conclude("masks", off, "colour + shape"),
        conclude("own mask", gaps["colour_shape shuffled"], "colour + shape"),
    ]
    if "held_out clip" in gaps:
        parts.append(conclude("clip", gaps["held_out clip"], "held-out colour-shape pairs"))
    return parts


def captions(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Conclusions of section 2 on captions as queries, which have no intervals.

    Args:
        scores: metrics of both alignments, as in the summary.
    """
    kinds = {"map_caption_full": "full captions (all objects)", "map_caption_partial": "partial ones"}
    found = [
        f"{scores['smartclip'][f'{key}_hard']:.2f} (CLIP {scores['clip'][f'{key}_off']:.2f}) on {what}"
        for key, what in kinds.items()
        if f"{key}_off" in scores["clip"]
    ]
    return [f"With captions as queries, the mAP of masked SmartCLIP is {' and '.join(found)}."] if found else []


def probe(summary: Mapping[str, Any]) -> list[str]:
    """Conclusions of section 4: what patch features of the towers know about shapes, without boxes."""
    novel, base = (summary["region_probe"][g]["dense"] for g in ("novel", "base"))
    clip = summary["region_probe_by_towers"]["clip"]["novel"]["dense_value"]["off"]
    random = summary["region_probe_by_towers"]["random"]["novel"]["dense_value"]["off"]
    if novel["hard"] <= 2 * random:
        return [
            "Patch features do not recognise the novel shapes.",
            f"{novel['hard']:.2f} of their boxes are classified correctly; with random towers {random:.2f}.",
        ]
    near = "as well as" if novel["hard"] >= 0.9 * base["hard"] else "less well than"
    return [
        f"From captions alone, patch features recognise the novel shapes {near} the base shapes.",
        f"{novel['hard']:.2f} of the novel boxes are classified correctly, {base['hard']:.2f} of the base ones; for "
        f"novel boxes CLIP reaches {clip:.2f}, towers with random weights {random:.2f}.",
    ]


def detection(summary: Mapping[str, Any], gaps: Gaps) -> list[str]:
    """Conclusions of section 5."""
    novel, base = summary["detection"]["novel_ap50"], summary["detection"]["base_ap50"]
    share = novel["hard"] / base["hard"] if base["hard"] > 0 else 0.0
    times = novel["hard"] / max(novel["text_shuffled"], novel["random_tower"], 1e-3)
    parts = [
        f"Novel shapes {first_reached(share, DETECTED)}: AP50 {novel['hard']:.2f}, {share:.0%} of the "
        f"{base['hard']:.2f} of base shapes.",
        f"{first_reached(times, LEARNED)}: with permuted names it is {novel['text_shuffled']:.3f}, with random towers "
        f"{novel['random_tower']:.3f}.",
        conclude("masks", gaps["novel off"], "novel shapes"),
        conclude("own mask", gaps["novel shuffled"], "novel shapes"),
    ]
    if gaps["novel off"].above:
        parts.append("Note that these heads were trained with masks, which favours masks at test time.")
    return parts


def grounding(summary: Mapping[str, Any], gaps: Gaps) -> list[str]:
    """Conclusions of section 7."""
    results = summary["grounding"]
    hard, chance, best = results["acc50"]["hard"], results["chance"], results["best_possible"]
    head, gap = results["head"]["hard"], gaps["referring zero-shot"]
    return [
        f"Without grounding training, {hard:.2f} of the phrases are located among ten boxes (chance {chance:.2f}, "
        f"upper bound with these boxes {best:.2f}, with permuted texts {results['acc50']['text_shuffled']:.2f}).",
        f"The trained head, which needs no proposals, {HEAD[outcome(gap)]} ({head['acc50']:.2f}, {interval(gap)}).",
        conclude("own mask", gaps["grounding shuffled"], "grounding"),
        conclude("masks", gaps["grounding off"], "zero-shot grounding"),
        conclude("masks", gaps["referring off"], "the trained head's grounding"),
    ]


@dataclass(frozen=True)
class MaskFacts:
    """Statistics of the masks of colour-and-shape phrases; overlaps are mean Jaccard indices.

    Attributes:
        densities: fraction of dimensions that each phrase keeps.
        same_shape: overlap of phrases with the same shape and different colours.
        same_colour: overlap of phrases with the same colour and different shapes.
        neither: overlap of phrases that share neither.
    """

    densities: Sequence[float]
    same_shape: float
    same_colour: float
    neither: float


def masks(stats: MaskFacts) -> list[str]:
    """Conclusions of section 3."""
    mean = sum(stats.densities) / len(stats.densities)
    facts = (
        f"A text keeps {mean:.0%} of the dimensions on average, between {min(stats.densities):.0%} and "
        f"{max(stats.densities):.0%}. The mask overlap (Jaccard index) of two texts is {stats.same_shape:.2f} with the "
        f"same shape, {stats.same_colour:.2f} with the same colour, and {stats.neither:.2f} with neither."
    )
    followed = [
        name
        for name, overlap in (("shape", stats.same_shape), ("colour", stats.same_colour))
        if overlap > stats.neither + SMALL
    ]
    if followed:
        return [f"Masks depend on the content of the text: its {' and its '.join(followed)}.", facts]
    if stats.neither > NEARLY_ALIKE:
        return ["Masks of different texts are nearly identical and say little about the content of the text.", facts]
    return ["Masks differ between texts, but hardly depend on shape or colour.", facts]
