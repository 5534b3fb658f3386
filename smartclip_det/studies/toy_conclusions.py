"""What the numbers of a toy run say, in words. Every sentence follows from numbers by a rule that is written here.

A difference counts as shown when its 95 % interval (paired bootstrap over the validation pictures) lies on one side of
zero. The interval tells of other pictures, not of other seeds: ``smartclip-det study grid`` tells of those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smartclip_det.studies.toy_measures import Gap

Gaps = Mapping[str, Gap]
#: Novel shapes count as found when their AP50 is this share of the base shapes'.
FOUND = 2 / 3
#: ... and as read from captions, or mostly so, when it is so many times the larger control.
FROM_TEXT, MOSTLY_FROM_TEXT = 20.0, 3.0
#: Differences below this are small.
SMALL = 0.05
#: Masks that share more of their dimensions are nearly alike.
NEARLY_ALIKE = 0.8
NOT_SHOWN = "the text's own mask was not shown to matter"


def told(gap: Gap) -> str:
    """A difference with its interval."""
    return f"difference {gap.value:+.3f}, interval {gap.low:+.3f} to {gap.high:+.3f}"


def level(gap: Gap) -> bool:
    """Whether both are as good as each other: the whole interval is small. Else the pictures do not tell."""
    return max(abs(gap.low), abs(gap.high)) < SMALL


def own_mask(gap: Gap, what: str) -> str:
    """Whether it is the text's own mask that matters."""
    if gap.above:
        return f"The text's own mask matters for {what}: another text's mask does worse ({told(gap)})."
    if gap.below or level(gap):
        better = "even better" if gap.below else "as well"
        return f"Another text's mask does {better} on {what} ({told(gap)}): {NOT_SHOWN}."
    return f"Too few pictures to tell another text's mask from the text's own on {what} ({told(gap)}): {NOT_SHOWN}."


def masks_pay(gap: Gap, what: str) -> str:
    """Masked against plain scoring of the same weights."""
    if gap.above:
        return f"The same weights without masks do worse on {what} ({told(gap)})."
    if gap.below:
        return f"The same weights do better on {what} without masks ({told(gap)}): masks cost here."
    if level(gap):
        return f"The same weights do as well on {what} without masks ({told(gap)})."
    return f"Too few pictures to tell masks on from off on {what} ({told(gap)}): that masks help was not shown."


def against_clip(gap: Gap, what: str) -> str:
    """SmartCLIP against CLIP of equal steps, the comparison that counts for a user."""
    if gap.above:
        return f"SmartCLIP is ahead of CLIP trained for as many steps on {what} ({told(gap)})."
    if gap.below:
        return f"SmartCLIP is behind CLIP trained for as many steps on {what} ({told(gap)})."
    if level(gap):
        return f"SmartCLIP and CLIP trained for as many steps are level on {what} ({told(gap)})."
    return f"Too few pictures to tell SmartCLIP from CLIP trained for as many steps on {what} ({told(gap)})."


def alignment(gaps: Gaps) -> list[str]:
    """Section 2."""
    clip, off = gaps["colour_shape clip"], gaps["colour_shape off"]
    if off.above and clip.above:
        head = "Masks pay: with them SmartCLIP beats its own plain scoring and CLIP."
    elif off.above:
        head = "Masks organise what SmartCLIP knows, but it was not shown to know more than CLIP."
    else:
        head = "Masks were not shown to help."
    parts = [
        head,
        against_clip(clip, "colour + shape"),
        masks_pay(off, "colour + shape"),
        own_mask(gaps["colour_shape shuffled"], "colour + shape"),
    ]
    if "held_out clip" in gaps:
        parts.append(against_clip(gaps["held_out clip"], "pairs that training never showed"))
    return parts


def probe(summary: Mapping[str, Any]) -> list[str]:
    """Section 4: what a patch of the towers knows of shapes without boxes."""
    novel, base = (summary["region_probe"][g]["dense"] for g in ("novel", "base"))
    clip = summary["region_probe_by_towers"]["clip"]["novel"]["dense_value"]["off"]
    random = summary["region_probe_by_towers"]["random"]["novel"]["dense_value"]["off"]
    if novel["hard"] <= 2 * random:
        return [
            "Patches do not know the novel shapes.",
            f"{novel['hard']:.2f} of their boxes are named rightly; towers with random weights: {random:.2f}.",
        ]
    near = "as well as" if novel["hard"] >= 0.9 * base["hard"] else "less well than"
    return [
        f"Captions alone taught the patches the novel shapes, {near} the base shapes.",
        f"{novel['hard']:.2f} of the novel boxes are named rightly, {base['hard']:.2f} of the base ones; of the "
        f"novel ones CLIP names {clip:.2f}, towers with random weights {random:.2f}.",
    ]


def detection(summary: Mapping[str, Any], gaps: Gaps) -> list[str]:
    """Section 5."""
    novel, base = summary["detection"]["novel_ap50"], summary["detection"]["base_ap50"]
    share = novel["hard"] / base["hard"] if base["hard"] > 0 else 0.0
    times = novel["hard"] / max(novel["text_shuffled"], novel["random_tower"], 1e-3)
    verdict = "are found" if share >= FOUND else "are found in part" if share >= FOUND / 2 else "are mostly missed"
    parts = [f"Novel shapes {verdict}: AP50 {novel['hard']:.2f}, {share:.0%} of the base shapes' {base['hard']:.2f}."]
    controls = f"with names exchanged it is {novel['text_shuffled']:.3f}, on random towers {novel['random_tower']:.3f}"
    if times >= FROM_TEXT:
        parts.append(f"That comes from captions, through texts and towers: {controls}.")
    elif times >= MOSTLY_FROM_TEXT:
        parts.append(f"That comes mostly from captions: {controls}.")
    else:
        parts.append(f"That it comes from captions was not shown: {controls}.")
    parts += [masks_pay(gaps["novel off"], "novel shapes"), own_mask(gaps["novel shuffled"], "novel shapes")]
    if gaps["novel off"].above:
        parts.append("These heads were trained with masks on, and what heads were trained with they want in testing.")
    return parts


def grounding(summary: Mapping[str, Any], gaps: Gaps) -> list[str]:
    """Section 7."""
    found = summary["grounding"]
    hard, chance, best = found["acc50"]["hard"], found["chance"], found["best_possible"]
    head, gap = found["head"]["hard"], gaps["referring zero-shot"]
    better = "does better" if gap.above else "does worse" if gap.below else "does as well"
    parts = [
        f"Without any training for it, {hard:.2f} of the phrases find their object among ten boxes, where chance is "
        f"{chance:.2f} and the boxes allow {best:.2f}; with exchanged texts {found['acc50']['text_shuffled']:.2f}.",
        f"The trained head, which needs no boxes from elsewhere, {better} ({head['acc50']:.2f}, {told(gap)}).",
        own_mask(gaps["grounding shuffled"], "grounding"),
        masks_pay(gaps["grounding off"], "zero-shot grounding"),
        masks_pay(gaps["referring off"], "the trained head's grounding"),
    ]
    return parts


@dataclass(frozen=True)
class MaskFacts:
    """How masks of colour-and-shape phrases lie; overlaps are means of Jaccard's.

    Attributes:
        densities: share of the dimensions that each phrase keeps.
        same_shape: overlap of phrases of one shape in two colours.
        same_colour: that of phrases of two shapes in one colour.
        neither: that of phrases that share neither.
    """

    densities: Sequence[float]
    same_shape: float
    same_colour: float
    neither: float


def masks(found: MaskFacts) -> list[str]:
    """Section 3."""
    mean = sum(found.densities) / len(found.densities)
    facts = (
        f"A text keeps {mean:.0%} of the dimensions on average, {min(found.densities):.0%} to "
        f"{max(found.densities):.0%}. Two texts of the same shape share {found.same_shape:.2f} of their dimensions, "
        f"two of the same colour {found.same_colour:.2f}, two of neither {found.neither:.2f}."
    )
    followed = [
        name
        for name, overlap in (("shape", found.same_shape), ("colour", found.same_colour))
        if overlap > found.neither + SMALL
    ]
    if followed:
        return [f"Masks follow what the text is about: its {' and its '.join(followed)}.", facts]
    if found.neither > NEARLY_ALIKE:
        return ["Masks of different texts are nearly alike: what a text keeps says little of what it is about.", facts]
    return ["Masks differ from text to text, but hardly by shape or colour.", facts]
