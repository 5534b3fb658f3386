"""Handling of captions that are not plain text: one rule for all layouts, counted by reason."""

from __future__ import annotations

from typing import Any

from smartclip_det.formats.reasons import ReasonCounts
from smartclip_det.formats.texts import is_text

#: Reason -> what it means and what is done.
REASONS = {
    "without_caption": "no non-blank text: the image is skipped",
    "null_texts": "null or NaN as caption: skipped",
    "null_words": "only the word nan, null or none, a missing value in tables: skipped",
    "number_texts": "a number or boolean as caption: skipped",
    "object_texts": "a JSON object as caption: skipped",
    "not_utf8": "a text that is not UTF-8 and has no byte order mark: skipped",
    "blank_texts": "a blank text among others: skipped",
    "no_answer": "a conversation without an answer: skipped",
    "no_caption_key": "a JSON member without caption, long or short: skipped",
    "no_image": "a record without an image: skipped",
    "several_images": "a record with several images: skipped",
    "hidden_files": "hidden files and folders: not read",
    "other_endings": "a .txt whose image has an unsupported suffix",
    "texts_without_image": "a .txt without an image",
    "lines_as_captions": "a text of several lines: each line is a caption (with blank lines, it is one caption)",
    "later_answers": "a conversation with several answers: the first is the caption",
    "shared_texts": "images that share one .txt: each gets its text",
    "repeated_keys": "a sample with the name of an earlier one in the shard: kept",
    "repeated_ids": "an id of an earlier record with another image: kept",
    "repeated_images": "an image of an earlier record, with other texts: kept",
    "repeated_records": "an exact repeat of an earlier record: kept",
}
_NULL_WORDS = {"nan", "null", "none", "<na>"}


class CaptionCounts(ReasonCounts):
    """``records``, ``without_caption``, and each other reason of :data:`REASONS` that occurred."""

    meanings = REASONS

    def __init__(self) -> None:
        super().__init__(records=0, without_caption=0)

    def summary(self, name: str, images: int) -> str:
        """Format a summary: ``images`` records used from the source ``name``, and the table of reasons."""
        return f"{name}: {images:,} images with captions, of {self['records']:,} records.\n{self.table()}".rstrip()


def take_texts(value: Any, counts: CaptionCounts, where: str) -> list[str]:
    """Return the texts of a caption value, a string or nested lists of strings.

    Other values are counted, not converted.
    """
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
    """Treat a single text as the long caption, and several as short captions, as in COCO."""
    return (texts[0], []) if len(texts) == 1 else ("", texts)
