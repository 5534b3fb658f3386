"""What becomes of captions that are no plain text: one rule for every layout, counted by reason."""

from __future__ import annotations

from typing import Any

from smartclip_det.formats.reasons import ReasonCounts
from smartclip_det.formats.texts import is_text

#: Reason to what it means and what is done.
REASONS = {
    "without_caption": "no text that is not blank: the image is left out",
    "null_texts": "null or NaN for a caption: left out",
    "null_words": "the word nan, null or none alone, as tables write an absent text: left out",
    "number_texts": "a number or truth value for a caption: left out",
    "object_texts": "an object (its keys are no caption) for a caption: left out",
    "not_utf8": "a text that is not UTF-8 and has no byte order mark: left out",
    "blank_texts": "a blank text beside others: left out",
    "no_answer": "a conversation without an answer: left out",
    "no_caption_key": "a JSON member without caption, long or short: left out",
    "no_image": "a record without an image: left out",
    "several_images": "a record of several images: left out",
    "hidden_files": "hidden files and folders of systems and editors: not read",
    "other_endings": "a .txt beside a file whose ending is not read",
    "texts_without_image": "a .txt without an image",
    "lines_as_captions": "a text of several lines: each line is a caption (blank lines part paragraphs of one)",
    "later_answers": "a conversation with several answers: the first is the caption",
    "shared_texts": "images that share one .txt: each has its text",
    "repeated_keys": "a sample whose name an earlier one of the shard has: kept",
    "repeated_ids": "an id that an earlier record of another image has: kept",
    "repeated_images": "an image that an earlier record has, with other texts: kept",
    "repeated_records": "an earlier record again, image and texts: kept",
}
_NULL_WORDS = {"nan", "null", "none", "<na>"}


class CaptionCounts(ReasonCounts):
    """``records``, ``without_caption``, and each other reason of :data:`REASONS` that occurred."""

    meanings = REASONS

    def __init__(self) -> None:
        super().__init__(records=0, without_caption=0)

    def summary(self, name: str, images: int) -> str:
        """What a run says at its start: ``images`` records taken of the source ``name``, and the table."""
        return f"{name}: {images:,} images with captions, of {self['records']:,} records.\n{self.table()}".rstrip()


def take_texts(value: Any, counts: CaptionCounts, where: str) -> list[str]:
    """The texts of a caption's value: itself, or each text of a list; whatever else is counted, never spelled out."""
    if isinstance(value, list | tuple):
        return [text for part in value for text in take_texts(part, counts, where)]
    if isinstance(value, str):
        reason = "not_utf8" if not is_text(value) else "null_words" if value.strip().lower() in _NULL_WORDS else ""
    elif value is None or value != value:
        reason = "null_texts"
    else:
        reason = "number_texts" if isinstance(value, int | float) else "object_texts"
    if reason:
        counts.add(reason, where)
        return []
    return [value]


def long_and_short(texts: list[str]) -> tuple[str, list[str]]:
    """One text is an image's long caption; of several, each is a short one, as COCO's are."""
    return (texts[0], []) if len(texts) == 1 else ("", texts)
