"""Captions generated from scenes: random subsets of the objects, with random attributes.

A short caption omits most of the scene. The amount of detail grows at the start of training, from names with few
attributes to any subset of the objects. Pure functions of a scene and a generator.
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

#: In the order of the words in a caption; ``plain`` is never mentioned.
ATTRIBUTES = ("size", "texture", "colour")
UNSPOKEN = frozenset({"plain"})


@dataclass(frozen=True)
class Speech:
    """Amount of detail of a caption, as probabilities.

    Attributes:
        any_subset: name any number of objects, uniformly, rather than one or two.
        colour: mention the colour of an object.
        size: mention its size.
        texture: mention its texture.
    """

    any_subset: float = 0.0
    colour: float = 0.3
    size: float = 0.1
    texture: float = 0.1

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise UserError(f"scenes: {f.name} must be a probability in [0, 1]; given {value!r}.")

    @staticmethod
    def from_dict(values: Mapping[str, float]) -> Speech:
        """Build from plain values; unknown keys raise, with the closest ones."""
        for key in values:
            check_choice("key of scenes.start and scenes.end", key, [f.name for f in fields(Speech)])
        return Speech(**values)

    def towards(self, other: Speech, share: float) -> Speech:
        """Interpolate linearly to another instance."""
        moved = {f.name: (1 - share) * getattr(self, f.name) + share * getattr(other, f.name) for f in fields(self)}
        return Speech(**moved)


def draw_caption(objects: Sequence[Mapping[str, str]], speech: Speech, rng: np.random.Generator) -> str:
    """Draw a caption such as ``a small red heart and a star``, with objects in random order.

    Args:
        objects: at least one, each with ``shape`` and the :data:`ATTRIBUTES`.
        speech: amount of detail.
        rng: random generator.
    """
    any_number = rng.random() < speech.any_subset
    count = int(rng.integers(1, len(objects) + 1)) if any_number else int(rng.integers(1, 3))
    parts = []
    for i in rng.permutation(len(objects))[:count]:
        o = objects[i]
        mentioned = rng.random(len(ATTRIBUTES)) < [getattr(speech, a) for a in ATTRIBUTES]
        words = [o[a] for a, m in zip(ATTRIBUTES, mentioned, strict=True) if m and o[a] not in UNSPOKEN]
        parts.append(fill("{article} {}", " ".join([*words, o["shape"]])))
    return " and ".join(parts)


class SceneCaptions:
    """Generates captions from a scene file: a JSON list of ``{"id": ..., "objects": [{"shape": ...}]}``.

    Args:
        file: scenes, matched by image id.
        start: initial amount of detail, see :class:`Speech`.
        end: final amount of detail; None: as initially.
        ramp: number of training images between the two; 0: ``end`` from the start.
        data_root: root of ``file``.
    """

    def __init__(
        self,
        file: str,
        start: Mapping[str, float] | None = None,
        end: Mapping[str, float] | None = None,
        ramp: int = 0,
        data_root: str = "",
    ) -> None:
        self.file = osp.join(data_root, file)
        self.start = Speech.from_dict(start or {})
        self.end = self.start if end is None else Speech.from_dict(end)
        if ramp < 0:
            raise UserError(f"scenes.ramp must be a number of images, at least 0; given {ramp}.")
        self.ramp = ramp

    def attach(self, records: Sequence[CaptionRecord]) -> None:
        """Set ``objects`` of the records."""
        scenes = read_scenes(self.file, {"shape", *ATTRIBUTES})
        for r in records:
            r.objects = scenes[r.id]["objects"] if r.id in scenes else []
        without = sum(not r.objects for r in records)
        if without == len(records):
            raise UserError(f"No scene of {self.file} belongs to a captioned image (matched by image id).")
        if without:
            print_log(
                f"{without} of {len(records)} images have no objects in {self.file}; they use the captions of "
                "the caption file.",
                "current",
            )

    def draw(self, objects: Sequence[Mapping[str, str]], seen: int, rng: np.random.Generator) -> str:
        """Draw a caption, after ``seen`` training images."""
        share = min(1.0, seen / self.ramp) if self.ramp else 1.0
        return draw_caption(objects, self.start.towards(self.end, share), rng)
