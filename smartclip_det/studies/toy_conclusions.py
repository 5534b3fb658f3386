"""What the numbers of a toy run say, in words. Every sentence follows from numbers by a rule that is written here.

A difference counts as shown when its 95 % interval (paired bootstrap over the validation pictures) lies on one side of
zero. The interval tells of other pictures, not of other seeds: ``smartclip-det study grid`` tells of those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smartclip_det.studies.toy_measures import Gap

Gaps = Mapping[str, Gap]
#: Novel shapes count as found when their AP50 is this share of the base shapes'.
FOUND = 2 / 3
#: ... and as read from the text when it is so many times that with exchanged texts.
FROM_TEXT = 20.0
NOT_SHOWN = "the text's own mask was not shown to matter"


def told(gap: Gap) -> str:
    """A difference with its interval."""
    return f"difference {gap.value:+.3f}, interval {gap.low:+.3f} to {gap.high:+.3f}"


def own_mask(gap: Gap, what: str) -> str:
    """Whether it is the text's own mask that matters."""
    if gap.above:
        return f"The text's own mask matters for {what}: another text's mask does worse ({told(gap)})."
    if gap.below:
        return f"Another text's mask does even better on {what} ({told(gap)}): {NOT_SHOWN}."
    return f"Another text's mask does as well on {what} ({told(gap)}): {NOT_SHOWN}."


def masks_pay(gap: Gap, what: str) -> str:
    """Masked against plain scoring of the same weights."""
    if gap.above:
        return f"The same towers without masks do worse on {what} ({told(gap)})."
    if gap.below:
        return f"The same towers do better on {what} without masks ({told(gap)}): masks cost here."
    return f"The same towers do as well on {what} without masks ({told(gap)}): that masks help was not shown."


def against_clip(gap: Gap, what: str) -> str:
    """SmartCLIP against CLIP of equal steps, the comparison that counts for a user."""
    if gap.above:
        return f"SmartCLIP is ahead of CLIP trained for as many steps on {what} ({told(gap)})."
    if gap.below:
        return f"SmartCLIP is behind CLIP trained for as many steps on {what} ({told(gap)})."
    return f"SmartCLIP and CLIP trained for as many steps are level on {what} ({told(gap)})."


def alignment(gaps: Gaps) -> str:
    """Section 2."""
    parts = [
        against_clip(gaps["colour_shape clip"], "colour + shape"),
        masks_pay(gaps["colour_shape off"], "colour + shape"),
        own_mask(gaps["colour_shape shuffled"], "colour + shape"),
    ]
    if "held_out clip" in gaps:
        parts.append(against_clip(gaps["held_out clip"], "pairs that training never showed"))
    if gaps["colour_shape off"].above and not gaps["colour_shape clip"].above:
        parts.append(
            "So masks organise what these towers know, each text reading its own part, and do not add to what "
            "CLIP knows."
        )
    return " ".join(parts)


def probe(summary: Mapping[str, Any]) -> str:
    """Section 4: what a patch of the towers knows of shapes without boxes."""
    novel, base = (summary["region_probe"][g]["dense"] for g in ("novel", "base"))
    clip = summary["region_probe_by_towers"]["clip"]["novel"]["dense_value"]["off"]
    random = summary["region_probe_by_towers"]["random"]["novel"]["dense_value"]["off"]
    if novel["hard"] <= 2 * random:
        return (
            f"Patches do not know the novel shapes: {novel['hard']:.2f} of their boxes are named rightly, towers with "
            f"random weights {random:.2f}."
        )
    near = "as well as" if novel["hard"] >= 0.9 * base["hard"] else "less well than"
    return (
        f"Captions alone taught the patches the novel shapes: {novel['hard']:.2f} of their boxes are named rightly, "
        f"{near} those of base shapes ({base['hard']:.2f}); CLIP {clip:.2f}, towers with random weights {random:.2f}."
    )


def detection(summary: Mapping[str, Any], gaps: Gaps) -> str:
    """Section 5."""
    novel, base = summary["detection"]["novel_ap50"], summary["detection"]["base_ap50"]
    share = novel["hard"] / base["hard"] if base["hard"] > 0 else 0.0
    times = novel["hard"] / max(novel["text_shuffled"], 1e-3)
    verdict = "are found" if share >= FOUND else "are found in part" if share >= FOUND / 2 else "are mostly missed"
    parts = [f"Novel shapes {verdict}: AP50 {novel['hard']:.2f}, {share:.0%} of the base shapes' {base['hard']:.2f}."]
    if times >= FROM_TEXT:
        parts.append(
            f"That comes from the texts: with the names exchanged it is {novel['text_shuffled']:.3f}; and from the "
            f"towers: on random ones it is {novel['random_tower']:.3f}."
        )
    else:
        parts.append(f"With the names exchanged it is {novel['text_shuffled']:.3f}: too near to be sure of the texts.")
    parts += [masks_pay(gaps["novel off"], "novel shapes"), own_mask(gaps["novel shuffled"], "novel shapes")]
    if gaps["novel off"].above:
        parts.append("These heads were trained with masks on, and what heads were trained with they want in testing.")
    return " ".join(parts)


def grounding(summary: Mapping[str, Any], gaps: Gaps) -> str:
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
    return " ".join(parts)


def masks(densities: Mapping[str, float], same: float, different: float) -> str:
    """Section 3.

    Args:
        densities: share of the dimensions that each text keeps.
        same: mean overlap (Jaccard) of masks of texts that share their shape.
        different: that of texts that share no word.
    """
    mean = sum(densities.values()) / len(densities)
    head = f"A text keeps {mean:.0%} of the dimensions on average, {min(densities.values()):.0%} to "
    head += f"{max(densities.values()):.0%}. Texts of the same shape share {same:.2f} of their dimensions, texts of "
    head += f"different shape and colour {different:.2f}. "
    if same > different + 0.05:
        return head + "So masks follow what the text is about."
    return head + "So masks of different texts are nearly alike: what a text keeps says little of what it is about."
