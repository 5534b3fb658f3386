"""Which captions of the toy world are true of which scenes.

Objects that a caption mentions are distinct. Unmentioned attributes may have any value: "a red drop" is true of a
striped one, "the picture" of a black and white one. A part of the picture is one of its ninths, never several.

Shape letters: K captions, I scenes, O objects of all scenes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from smartclip_det.core.errors import UserError
from smartclip_det.datasets.toy_world.language import NUMBERS
from smartclip_det.datasets.toy_world.scenes import BACKGROUNDS, SIZES
from smartclip_det.datasets.toy_world.shapes import COLOURS, SHAPES, TEXTURES
from smartclip_det.formats.scenes import read_scenes

#: Keys that scene files must have.
OF_SCENES = ("background", "grey")
OF_OBJECTS = ("shape", "colour", "texture", "size", "place", "hidden")


def _one_of(name: str, words: Sequence[str]) -> str:
    return f"(?P<{name}>{'|'.join(words)})"


_THING = (
    f"an? (?:{_one_of('size', list(SIZES))} )?(?:{_one_of('texture', TEXTURES[1:])} )?"
    f"(?:{_one_of('colour', list(COLOURS))} )?{_one_of('shape', SHAPES)}"
)
_PLACE = "(?P<place>in the middle|in the (?:upper|lower|left|right|(?:upper|lower) (?:left|right)) part)"
_NAMED = re.compile(_THING)
_THERE_IS = re.compile(f"There is {_THING} {_PLACE}(?P<hidden>, partly hidden)?")
_BACKGROUND = f"{_one_of('background', list(BACKGROUNDS))} background"
_PICTURE = re.compile(
    f"The (?P<grey>black and white )?picture shows {_one_of('number', NUMBERS)} shapes? on a {_BACKGROUND}"
)
_EMPTY = re.compile(f"an (?P<number>empty) {_BACKGROUND}")


@dataclass(frozen=True)
class Claims:
    """Facts that a caption states.

    Attributes:
        scene: facts about the scene; ``number`` is the number of objects.
        things: facts about distinct objects.
    """

    scene: tuple[tuple[str, Any], ...]
    things: tuple[tuple[tuple[str, Any], ...], ...]


def read_claims(caption: str) -> Claims:
    """Parse a caption.

    Raises:
        UserError: for text that the toy world never generates.
    """
    scene: list[tuple[str, Any]] = []
    things = []
    for sentence in filter(None, (s.strip() for s in caption.split("."))):
        picture = _PICTURE.fullmatch(sentence) or _EMPTY.fullmatch(sentence)
        named = [_THERE_IS.fullmatch(sentence) or _NAMED.fullmatch(sentence)]
        if picture is None and named == [None]:
            named = [_NAMED.fullmatch(part) for part in sentence.split(" and ")]
        if picture is not None:
            scene += _facts(picture)
        elif None not in named:
            things += [tuple(_facts(n)) for n in named if n is not None]
        else:
            raise UserError(f"{sentence!r} is not a sentence of the toy world, so it cannot be checked against scenes.")
    if not scene and not things:
        raise UserError(f"An empty caption cannot be checked against scenes; given {caption!r}.")
    return Claims(tuple(scene), tuple(things))


def _facts(match: re.Match[str]) -> list[tuple[str, Any]]:
    values: dict[str, Any] = {k: v for k, v in match.groupdict().items() if v is not None}
    values.update({k: True for k in ("grey", "hidden") if k in values})
    if "number" in values:
        values["number"] = 0 if values["number"] == "empty" else NUMBERS.index(values["number"])
    return list(values.items())


class SceneTruth:
    """Checks captions against scenes."""

    def __init__(self, scenes: Mapping[Any, Mapping[str, Any]]) -> None:
        """Build from scenes by image id, with the keys :data:`OF_SCENES` and ``objects`` with :data:`OF_OBJECTS`."""
        self.rows = {image_id: row for row, image_id in enumerate(scenes)}
        counts = np.array([len(s["objects"]) for s in scenes.values()], dtype=np.int64)
        objects = [o for s in scenes.values() for o in s["objects"]]
        self._ends = np.cumsum(counts)
        self._owner = np.repeat(np.arange(len(counts)), counts)
        self._scene = {k: np.array([s[k] for s in scenes.values()]) for k in OF_SCENES} | {"number": counts}
        self._object = {k: np.array([o[k] for o in objects]) for k in OF_OBJECTS}

    @staticmethod
    def read(path: str | Path) -> SceneTruth:
        """Build from a scene file; errors as in :func:`read_scenes`."""
        return SceneTruth(read_scenes(path, OF_OBJECTS, OF_SCENES))

    def table(self, captions: Sequence[str], image_ids: Sequence[Any]) -> np.ndarray:
        """``[K, I]`` bool: which of K captions are true of which of I images.

        Raises:
            UserError: for images without a scene, or captions that the toy world never generates.
        """
        unknown = [i for i in image_ids if i not in self.rows]
        if unknown:
            raise UserError(f"{len(unknown)} of {len(image_ids)} images have no scene, e.g. {unknown[0]!r}.")
        # Captions share phrases, so lookups are cached.
        looked_up = cache(self._objects_like)
        table = [self._scenes_like(read_claims(c), looked_up) for c in captions]
        rows = np.array([self.rows[i] for i in image_ids], dtype=np.int64)
        return np.array(table, dtype=bool).reshape(len(captions), len(self.rows))[:, rows]

    def _objects_like(self, thing: tuple[tuple[str, Any], ...]) -> np.ndarray:
        """``[O]`` bool: objects that match."""
        fits = np.ones(len(self._owner), dtype=bool)
        for key, value in thing:
            fits &= self._object[key] == value
        return fits

    def _scenes_like(self, claims: Claims, objects_like: Any) -> np.ndarray:
        """``[I]`` bool: scenes that match."""
        fits = np.ones(len(self.rows), dtype=bool)
        for key, value in claims.scene:
            fits &= self._scene[key] == value
        matches = [objects_like(t) for t in claims.things]
        for match in matches:
            fits &= np.bincount(self._owner[match], minlength=len(fits)) > 0
        if len(matches) > 1:
            for row in np.flatnonzero(fits):
                start = self._ends[row - 1] if row else 0
                fits[row] = _have_partners(np.stack([m[start : self._ends[row]] for m in matches]))
        return fits


def _have_partners(table: np.ndarray) -> bool:
    """Whether the rows can be matched with distinct columns where they are True."""
    if table.shape[0] > table.shape[1]:
        return False
    return bool((maximum_bipartite_matching(csr_array(table), "column") >= 0).all())
