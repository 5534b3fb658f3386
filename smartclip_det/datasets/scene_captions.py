"""Captions drawn from what is in a picture: a random part of its objects, each with random attributes.

A short caption leaves most things out. How much is said grows over the first pictures of a training, from names with
few attributes to any subset of the objects. Pure functions of a scene and a generator.
"""

from __future__ import annotations

import os.path as osp
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from mmengine.logging import print_log

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.prompts import fill
from smartclip_det.formats.captions import CaptionRecord
from smartclip_det.formats.scenes import read_scenes

#: In the order in which they are said; ``plain`` is nothing to speak of.
ATTRIBUTES = ("size", "texture", "colour")
UNSPOKEN = frozenset({"plain"})


@dataclass(frozen=True)
class Speech:
    """How much a caption says, as chances.

    Attributes:
        any_subset: that it names any number of the objects, drawn evenly, and not one or two.
        colour: that an object is named with its colour.
        size: with its size.
        texture: with its texture.
    """

    any_subset: float = 0.0
    colour: float = 0.3
    size: float = 0.1
    texture: float = 0.1

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise UserError(f"scenes: {f.name} is a chance in [0, 1]; given {value!r}.")

    @staticmethod
    def from_dict(values: Mapping[str, float]) -> Speech:
        """From plain values; unknown keys raise with the nearest ones."""
        for key in values:
            check_choice("key of scenes.start and scenes.end", key, [f.name for f in fields(Speech)])
        return Speech(**values)

    def towards(self, other: Speech, share: float) -> Speech:
        """So much of the way to another."""
        moved = {f.name: (1 - share) * getattr(self, f.name) + share * getattr(other, f.name) for f in fields(self)}
        return Speech(**moved)


def draw_caption(objects: Sequence[Mapping[str, str]], speech: Speech, rng: np.random.Generator) -> str:
    """``a small red heart and a star``: some of the objects, in random order.

    Args:
        objects: at least one, each with ``shape`` and the :data:`ATTRIBUTES`.
        speech: how much is said.
        rng: of everything that is drawn.
    """
    any_number = rng.random() < speech.any_subset
    count = int(rng.integers(1, len(objects) + 1)) if any_number else int(rng.integers(1, 3))
    parts = []
    for i in rng.permutation(len(objects))[:count]:
        o = objects[i]
        said = rng.random(len(ATTRIBUTES)) < [getattr(speech, a) for a in ATTRIBUTES]
        words = [o[a] for a, s in zip(ATTRIBUTES, said, strict=True) if s and o[a] not in UNSPOKEN]
        parts.append(fill("{article} {}", " ".join([*words, o["shape"]])))
    return " and ".join(parts)


class SceneCaptions:
    """Captions of captioned images by a scene file: a JSON list of ``{"id": ..., "objects": [{"shape": ...}]}``."""

    def __init__(
        self,
        file: str,
        start: Mapping[str, float] | None = None,
        end: Mapping[str, float] | None = None,
        ramp: int = 0,
        data_root: str = "",
    ) -> None:
        """Build.

        Args:
            file: scenes by image id.
            start: how much is said at first, see :class:`Speech`.
            end: how much at last; None for as much as at first.
            ramp: pictures seen between; 0: ``end`` from the first.
            data_root: folder that ``file`` is in.
        """
        self.file = osp.join(data_root, file)
        self.start = Speech.from_dict(start or {})
        self.end = self.start if end is None else Speech.from_dict(end)
        if ramp < 0:
            raise UserError(f"scenes.ramp counts pictures, from 0; given {ramp}.")
        self.ramp = ramp

    def attach(self, records: Sequence[CaptionRecord]) -> None:
        """Fill ``objects`` of the records."""
        scenes = read_scenes(self.file, {"shape", *ATTRIBUTES})
        for r in records:
            r.objects = scenes[r.id]["objects"] if r.id in scenes else []
        without = sum(not r.objects for r in records)
        if without == len(records):
            raise UserError(f"No scene of {self.file} belongs to a captioned image (they are matched by image id).")
        if without:
            print_log(
                f"{without} of {len(records)} images have no object in {self.file}; their captions are those of "
                "the caption file.",
                "current",
            )

    def draw(self, objects: Sequence[Mapping[str, str]], seen: int, rng: np.random.Generator) -> str:
        """A caption, after ``seen`` pictures of the training."""
        share = min(1.0, seen / self.ramp) if self.ramp else 1.0
        return draw_caption(objects, self.start.towards(self.end, share), rng)
