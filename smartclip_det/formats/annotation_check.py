"""Validation of COCO and LVIS annotations; every reader of such files uses it.

* Errors, with the entry and what to do: repeated ids of images and categories, references to unlisted ids, strings in
  place of numbers, invalid boxes, non-finite numbers.
* Fixed and reported: annotation ids that are 0, repeated or not integers (COCO evaluators treat a match with id 0 as no
  match); missing or empty ``area`` and ``iscrowd``; unambiguous numbers and flags written as strings; ids written as
  decimals; invalid image sizes; Roboflow's category for the project itself.
* Reported only: most boxes leave their image, so they may be corners.

Files have millions of annotations, so they are checked column by column; only a chunk that fails this check is read
entry by entry.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from smartclip_det.core.errors import UserError
from smartclip_det.formats.boxes import (
    LARGEST,
    are_boxes,
    box_problem,
    fit_as_corners,
    is_number,
    look_like_corners,
    outside,
)

#: Reason -> message; ``n`` entries, the first of which is ``first``.
REASONS = {
    "renumbered_annotation_ids": "{n} annotation ids are 0, repeated or not integers and were renumbered (first: "
    "{first}); evaluators ignore matches with such ids",
    "filled_annotation_ids": "{n} annotations have no id; ids were assigned",
    "decimal_ids": "{n} ids are written as decimals like 1.0 (first: {first}); they are read as integers",
    "filled_area": "{n} annotations have no area; width x height of the box is used",
    "filled_iscrowd": "{n} annotations have no iscrowd; 0 is used",
    "numbers_as_texts": "{n} numbers are written as strings (first: {first}); they are read as numbers",
    "unusable_sizes": "{n} images have a width or height of 0 or null (first: {first}); their size is treated "
    "as unknown",
    "root_category": "the category {first} has no boxes and is the supercategory of all others (Roboflow's name of the "
    "project); it is dropped",
    "boxes_outside": "{n} annotated boxes leave their image: are they x1, y1, x2, y2? COCO boxes are x, y, width, "
    "height",
}
_FLAGS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
#: Optional boolean fields of an annotation.
_MARKS = ("ignore", "difficult")
_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


@dataclass
class CheckReport:
    """What a check fixed or noticed, by the reasons of :data:`REASONS`.

    Attributes:
        counts: number of entries, by reason.
        first: the first entry, by reason.
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, first: str, count: int = 1) -> None:
        """Count entries."""
        self.counts[reason] += count
        self.first.setdefault(reason, first)

    def lines(self) -> list[str]:
        """Format a sentence per reason that occurred."""
        return [t.format(n=self.counts[r], first=self.first[r]) for r, t in REASONS.items() if self.counts[r]]


class AnnotationCheck:
    """Check one file. Parts may come in chunks: categories first, then images, then annotations."""

    def __init__(self, where: str) -> None:
        """Initialise; ``where`` is the file named in messages."""
        self.where, self.report = where, CheckReport()
        self.sizes: dict[Any, tuple[float, float]] = {}
        self._categories: dict[Any, str] = {}
        self._images: set[Any] | None = None
        self._ids: set[int] = set()
        self._unnumbered: list[dict[str, Any]] = []
        self._seen = {"images": 0, "annotations": 0}
        self._leaving, self._corners, self._lvis = 0, True, False
        #: Image ids referred to by annotations that precede the images.
        self.referred: dict[Any, str] = {}

    def refuse(self, part: str, n: int, problem: str) -> UserError:
        """Build the error for an entry."""
        return UserError(f"{self.where}: entry {n} of {part} {problem}")

    def categories(self, entries: Sequence[Any]) -> list[dict[str, Any]]:
        """Check all categories."""
        out = []
        first: dict[Any, int] = {}
        for n, entry in enumerate(entries):
            self._has(entry, "categories", n, ("id", "name"))
            number = self._id(entry["id"], "categories", n, "id")
            if number in first:
                names = f"({entries[first[number]]['name']!r} and {entry['name']!r})"
                raise self.refuse(
                    "categories",
                    n,
                    f"has the id {number!r} of entry {first[number]} {names}: give each class its own id.",
                )
            first[number] = n
            if not isinstance(entry["name"], str) or not entry["name"].strip():
                raise self.refuse("categories", n, f"has name={entry['name']!r}; a name must be a string.")
            self._categories[number] = entry["name"]
            self._lvis = self._lvis or "frequency" in entry
            out.append(entry if number is entry["id"] else {**entry, "id": number})
        return out

    def without_root(self, categories: list[dict[str, Any]], annotations: Sequence[Any]) -> list[dict[str, Any]]:
        """Drop the category that Roboflow adds for the project, and reject repeated names.

        The Roboflow category has no boxes and supercategory "none", and is the supercategory of all others.
        """
        roots = [c for c in categories if str(c.get("supercategory") or "none").lower() == "none"]
        if len(roots) == 1 and len(categories) > 1:
            root = roots[0]
            others = [c for c in categories if c is not root]
            if all(c.get("supercategory") == root["name"] for c in others) and not any(
                a["category_id"] == root["id"] for a in annotations
            ):
                self.report.add("root_category", f"{root['name']!r} (id {root['id']})")
                categories = others
        names = Counter(c["name"] for c in categories)
        twice = [n for n, count in names.items() if count > 1]
        if twice:
            raise UserError(
                f"{self.where} repeats category names: {sorted(twice)[:5]}. Classes are matched by name: rename one of "
                "them, or merge them into one id."
            )
        return categories

    def images(self, entries: Sequence[Any]) -> list[dict[str, Any]]:
        """Check images, or a chunk of them."""
        known = self._images = self._images if self._images is not None else set()
        out = []
        start = self._seen["images"]
        for n, entry in enumerate(entries, start):
            self._has(entry, "images", n, ("id",))
            number = self._id(entry["id"], "images", n, "id")
            if number in known:
                raise self.refuse(
                    "images", n, f"has the id {number!r}, which an earlier entry has. Ids must be unique."
                )
            known.add(number)
            changes = {} if number is entry["id"] else {"id": number}
            out.append(self._sized(entry, changes, number, n))
        self._seen["images"] += len(entries)
        return out

    def _sized(self, entry: dict[str, Any], changes: dict[str, Any], number: Any, n: int) -> dict[str, Any]:
        width, height = (entry.get(k, "none") for k in ("width", "height"))
        if type(width) is type(height) is int and width > 0 and height > 0:
            self.sizes[number] = (width, height)
        elif width != "none" or height != "none":
            read = [self._size(v, k, n) for k, v in (("width", width), ("height", height)) if v != "none"]
            entry = {k: v for k, v in entry.items() if k not in ("width", "height")}
            if len(read) == 2 and all(read):
                self.sizes[number] = (read[0], read[1])
                changes.update(width=read[0], height=read[1])
            elif len(read) == 2:
                self.report.add("unusable_sizes", f"image {number!r}")
        for key in _LISTS:
            values = entry.get(key, [])
            if not isinstance(values, list):
                raise self.refuse("images", n, f"has {key}={values!r}; expected a list of category ids, [] for none.")
            if not set(map(type, values)) <= {int, str}:
                changes[key] = [self._id(v, "images", n, key) for v in values]
        return {**entry, **changes} if changes else entry

    def _size(self, value: Any, key: str, n: int) -> int:
        """Parse an image side in pixels; 0 if unknown."""
        side = self._number(value, key, "images", n) if value is not None else 0
        if side is None or side < 0 or side != int(side):
            raise self.refuse("images", n, f"has {key}={value!r}; expected an integer number of pixels.")
        return int(side)

    def annotations(self, entries: Sequence[Any]) -> list[dict[str, Any]]:
        """Check annotations, or a chunk of them."""
        start = self._seen["annotations"]
        self._seen["annotations"] += len(entries)
        without_crowd = self._check_columns(entries)
        if without_crowd is None:
            out = [self._annotation(a, n) for n, a in enumerate(entries, start)]
            self._measure([a["image_id"] for a in out], np.array([a["bbox"] for a in out], float).reshape(-1, 4))
            return out
        if without_crowd:
            self.report.add("filled_iscrowd", f"entry {start + without_crowd[0]}", len(without_crowd))
        if len(without_crowd) == len(entries):
            return [{**a, "iscrowd": 0} for a in entries]
        missing = set(without_crowd)
        return (
            [{**a, "iscrowd": 0} if n in missing else a for n, a in enumerate(entries)]
            if without_crowd
            else list(entries)
        )

    def _check_columns(self, entries: Sequence[Any]) -> list[int] | None:
        """Return positions of entries without ``iscrowd`` if all are otherwise valid.

        None if entries must be read one by one.
        """
        try:
            ids, images, categories, boxes, areas = (
                [a[k] for a in entries] for k in ("id", "image_id", "category_id", "bbox", "area")
            )
            crowds = [a.get("iscrowd", 0) for a in entries]
            marks = [a[k] for k in _MARKS for a in entries if k in a]
            numbers = list(chain.from_iterable(boxes))
        except (KeyError, TypeError, AttributeError, IndexError):
            return None
        types: list[tuple[list[Any], set[type]]]
        types = [
            (ids, {int}),
            (images, {int, str}),
            (categories, {int, str}),
            (boxes, {list}),
            (crowds, {int}),
            (marks, {int}),
            (areas, {int, float}),
            (numbers, {int, float}),
        ]
        if not all(set(map(type, values)) <= allowed for values, allowed in types):
            return None
        new = set(ids)
        usable = min(ids, default=1) > 0 and max(ids, default=1) < 2**63 and new.isdisjoint(self._ids)
        if len(new) < len(ids) or not usable:
            return None
        if not set(categories) <= self._categories.keys() or not set(crowds) | set(marks) <= {0, 1}:
            return None
        if self._images is not None and not set(images) <= self._images:
            return None
        if not set(map(len, boxes)) <= {4}:
            return None
        try:
            table = np.array(numbers, dtype=np.float64).reshape(-1, 4)
            size = np.array(areas, dtype=np.float64)
        except OverflowError:
            return None
        if not are_boxes(table) or not ((size >= 0) & (size <= LARGEST)).all():
            return None
        self._ids |= new
        if self._images is None:
            self.referred.update(dict.fromkeys(set(images), "an annotation"))
        self._measure(images, table)
        return [n for n, a in enumerate(entries) if "iscrowd" not in a]

    def _measure(self, images: Sequence[Any], boxes: np.ndarray) -> None:
        """Count boxes that leave their image."""
        unknown = (math.inf, math.inf)
        sizes = np.fromiter(
            chain.from_iterable(self.sizes.get(i, unknown) for i in images), np.float64, 2 * len(images)
        ).reshape(-1, 2)
        self._leaving += int(outside(boxes, sizes).sum())
        self._corners = self._corners and fit_as_corners(boxes, sizes)

    def _annotation(self, entry: Any, n: int) -> dict[str, Any]:
        self._has(entry, "annotations", n, ("image_id", "category_id", "bbox"))
        out = {
            **entry,
            "image_id": self._reference(entry, "image_id", n, self._images, "for image"),
            "category_id": self._reference(entry, "category_id", n, self._categories, "of category"),
        }
        if problem := box_problem(entry["bbox"]):
            hint = " An image without objects has no annotation entry." if entry["bbox"] in ([], None) else ""
            raise self.refuse("annotations", n, f"has bbox={entry['bbox']!r}: {problem}.{hint}")
        out["area"] = self._area(entry, n)
        out["iscrowd"] = self._flag(entry, "iscrowd", n)
        if entry.get("iscrowd") is None:
            self.report.add("filled_iscrowd", f"entry {n}")
        for key in _MARKS:
            if key in entry:
                out[key] = self._flag(entry, key, n)
        self._keep_id(out, n)
        return out

    def _keep_id(self, out: dict[str, Any], n: int) -> None:
        given = out.get("id")
        number = int(given) if isinstance(given, float) and given.is_integer() else given
        if type(number) is int and 0 < number < 2**63 and number not in self._ids:
            if number is not given:
                self.report.add("decimal_ids", f"entry {n} of annotations")
            self._ids.add(number)
            out["id"] = number
            return
        reason = "filled_annotation_ids" if given is None else "renumbered_annotation_ids"
        self.report.add(reason, f"{given!r} of entry {n}")
        self._unnumbered.append(out)

    def finish(self) -> CheckReport:
        """Assign missing ids and check for corners; call after the last chunk."""
        start = max(self._ids, default=0) + 1
        if start + len(self._unnumbered) >= 2**63:
            raise UserError(
                f"{self.where}: annotation ids go up to {start - 1}, so no new ids can be assigned. Number them from 1."
            )
        if self._lvis:
            # LVIS has no crowd annotations, so its files have no iscrowd.
            del self.report.counts["filled_iscrowd"]
        for number, entry in enumerate(self._unnumbered, start):
            entry["id"] = number
        if look_like_corners(self._seen["annotations"], self._leaving, self._corners):
            self.report.add("boxes_outside", "", self._leaving)
        if self._images is not None and (lost := self.referred.keys() - self._images):
            raise UserError(
                f"{self.where}: annotations are for image {min(map(str, lost))}, which is not listed in the file."
            )
        return self.report

    def _has(self, entry: Any, part: str, n: int, keys: Sequence[str]) -> None:
        missing = [k for k in keys if not isinstance(entry, Mapping) or k not in entry]
        if missing:
            raise self.refuse(part, n, f"lacks {', '.join(missing)}.")

    def _id(self, value: Any, part: str, n: int, key: str) -> Any:
        if type(value) is int or (isinstance(value, str) and value):
            return value
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            self.report.add("decimal_ids", f"entry {n} of {part}")
            return int(value)
        raise self.refuse(part, n, f"has {key}={value!r}; ids must be integers or strings.")

    def _reference(self, entry: Any, key: str, n: int, known: Any, what: str) -> Any:
        value = self._id(entry[key], "annotations", n, key)
        if known is None:
            self.referred.setdefault(value, "an annotation")
        elif value not in known:
            raise self.refuse(
                "annotations", n, f"is {what} {value!r}, which is not listed in the file.{twin_hint(value, known)}"
            )
        return value

    def _area(self, entry: Any, n: int) -> float:
        value = entry.get("area")
        if value is None:
            self.report.add("filled_area", f"entry {n}")
            return float(entry["bbox"][2] * entry["bbox"][3])
        area = self._number(value, "area", "annotations", n)
        if area is None or area < 0:
            raise self.refuse(
                "annotations",
                n,
                f"has area={value!r}; expected a number of square pixels. If area is omitted, width x height is used.",
            )
        return area

    def _number(self, value: Any, key: str, part: str, n: int) -> Any:
        """Parse a number, also if written as a string; None for anything else."""
        if isinstance(value, str):
            try:
                value = float(value) if "_" not in value else None
            except ValueError:
                value = None
            if is_number(value):
                self.report.add("numbers_as_texts", f"{key} of entry {n} of {part}")
        return value if is_number(value) else None

    def _flag(self, entry: Any, key: str, n: int) -> int:
        value = entry.get(key)
        if value is None:
            return 0
        if isinstance(value, str) and value.strip().lower() in _FLAGS:
            self.report.add("numbers_as_texts", f"{key} of entry {n} of annotations")
            return _FLAGS[value.strip().lower()]
        if isinstance(value, int | float) and value in (0, 1):
            return int(value)
        raise self.refuse("annotations", n, f"has {key}={value!r}; expected 0 or 1.")


def twin_hint(value: Any, known: Any) -> str:
    """Suggest a fix for an unlisted id.

    Mentions the same id of the other type (string or number) if that one is listed.
    """
    text = isinstance(value, str)
    twin = str(value) if not text else int(value) if value.strip().lstrip("-").isdecimal() else None
    if twin in known:
        return f" It lists {twin!r}: one is a string, the other a number. Use the same type."
    return " List it, or remove the entry."
