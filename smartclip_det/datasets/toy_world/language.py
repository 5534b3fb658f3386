"""Captions and referring expressions of scenes. Pure functions of the scene and its generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartclip_det.datasets.toy_world.scenes import Scene, ToyObject
from smartclip_det.datasets.toy_world.shapes import COLOURS, GREYS, SHAPES

NUMBERS = ("no", "one", "two", "three", "four", "five")
SHORT_CAPTIONS = 5


@dataclass(frozen=True)
class SceneExpression:
    """A sentence and the objects it refers to: one, several, or none.

    Attributes:
        sentence: the text.
        targets: indices into the scene's objects.
        kind: ``attribute | relation | superlative | plural | none``.
    """

    sentence: str
    targets: tuple[int, ...]
    kind: str


def article(word: str) -> str:
    """``an`` before a vowel."""
    return "an" if word[0] in "aeiou" else "a"


def describe(o: ToyObject, size: bool = False, texture: bool = False, colour: bool = True) -> str:
    """Colour and shape, optionally with size and texture; a plain texture is never mentioned."""
    words = [o.size] if size else []
    if texture and o.texture != "plain":
        words.append(o.texture)
    if colour:
        words.append(o.colour)
    return " ".join([*words, o.shape])


def where(o: ToyObject, height: int, width: int) -> str:
    """Which ninth of the image contains the centre of an object."""
    x, y = o.centre
    column = ("left", "", "right")[min(2, int(3 * x / width))]
    row = ("upper", "", "lower")[min(2, int(3 * y / height))]
    if not row and not column:
        return "in the middle"
    return f"in the {' '.join(w for w in (row, column) if w)} part"


def scene_facts(scene: Scene) -> dict[str, Any]:
    """All facts that captions may state about a scene; ``truth.py`` checks captions against them."""
    height, width = scene.image.shape[:2]
    objects = [
        {
            "shape": o.shape,
            "colour": o.colour,
            "texture": o.texture,
            "size": o.size,
            "place": where(o, height, width),
            "hidden": o.partly_hidden,
        }
        for o in scene.objects
    ]
    return {"background": scene.background, "grey": scene.grey, "objects": objects}


def long_caption(scene: Scene) -> str:
    """One sentence about the scene and one about each object, in random order."""
    height, width = scene.image.shape[:2]
    count = len(scene.objects)
    kind = "black and white picture" if scene.grey else "picture"
    sentences = [
        f"The {kind} shows {NUMBERS[count]} shape{'' if count == 1 else 's'} on a {scene.background} background"
    ]
    for o in scene.objects:
        text = describe(o, size=True, texture=True)
        hidden = ", partly hidden" if o.partly_hidden else ""
        sentences.append(f"There is {article(text)} {text} {where(o, height, width)}{hidden}")
    order = scene.rng.permutation(len(sentences))
    return ". ".join(sentences[i] for i in order) + "."


def short_captions(scene: Scene) -> list[str]:
    """Five captions that each describe one or two objects, with some of their attributes."""
    captions = []
    for _ in range(SHORT_CAPTIONS):
        if not scene.objects:
            captions.append(f"an empty {scene.background} background")
            continue
        chosen = scene.rng.permutation(len(scene.objects))[: int(scene.rng.integers(1, 3))]
        size, texture, colour = (bool(scene.rng.random() < chance) for chance in (0.1, 0.1, 0.3))
        parts = [describe(scene.objects[i], size, texture, colour) for i in chosen]
        captions.append(" and ".join(f"{article(p)} {p}" for p in parts))
    return captions


def _matches(objects: list[ToyObject], test: Callable[[ToyObject], bool]) -> tuple[int, ...]:
    return tuple(i for i, o in enumerate(objects) if test(o))


def expressions(scene: Scene) -> list[SceneExpression]:
    """Expressions that are true in this scene; those for one object are true of that object only."""
    objects = scene.objects
    out: list[SceneExpression] = []
    for i, o in enumerate(objects):
        out += _single(scene, i, o)
    for plural in (_plural_colour(objects), _plural_shape(objects)):
        if plural is not None:
            out.append(plural)
    out.append(_absent(scene.rng, objects, scene.grey))
    return out


def _single(scene: Scene, i: int, o: ToyObject) -> list[SceneExpression]:
    objects = scene.objects
    candidates = [
        (o.shape, _matches(objects, lambda p: p.shape == o.shape)),
        (f"{o.colour} {o.shape}", _matches(objects, lambda p: p.pair == o.pair)),
        (describe(o, size=True), _matches(objects, lambda p: (p.pair, p.size) == (o.pair, o.size))),
    ]
    if o.texture != "plain":
        same = _matches(objects, lambda p: (p.pair, p.texture) == (o.pair, o.texture))
        candidates.append((describe(o, texture=True), same))
    out = [SceneExpression(f"the {text}", t, "attribute") for text, t in candidates if t == (i,)][:2]
    same_shape = [k for k, p in enumerate(objects) if p.shape == o.shape]
    if len(same_shape) > 1:
        axis, word = ((0, "leftmost"), (0, "rightmost"), (1, "topmost"), (1, "bottommost"))[int(scene.rng.integers(4))]
        sign = -1 if word in ("rightmost", "bottommost") else 1
        ranked = sorted(same_shape, key=lambda k: sign * objects[k].centre[axis])
        clear = abs(objects[ranked[0]].centre[axis] - objects[ranked[1]].centre[axis]) >= 4
        if ranked[0] == i and clear:
            out.append(SceneExpression(f"the {word} {o.shape}", (i,), "superlative"))
    out += _relation(scene, i, o)
    return out


def _relation(scene: Scene, i: int, o: ToyObject) -> list[SceneExpression]:
    """``the SHAPE left of the COLOUR SHAPE``, if the anchor is unique and no other object matches."""
    objects = scene.objects
    for k in scene.rng.permutation(len(objects)).tolist():
        anchor = objects[k]
        if k == i or len(_matches(objects, lambda p: p.pair == anchor.pair)) > 1:  # noqa: B023 (used at once)
            continue
        for axis, sign, word in ((0, -1, "left of"), (0, 1, "right of"), (1, -1, "above"), (1, 1, "below")):
            fits = [
                n
                for n, p in enumerate(objects)
                if n != k and p.shape == o.shape and sign * (p.centre[axis] - anchor.centre[axis]) > 0
            ]
            clear = all(
                abs(p.centre[axis] - anchor.centre[axis]) >= 4
                for p in objects
                if p.shape == o.shape and p is not anchor
            )
            if fits == [i] and clear:
                return [SceneExpression(f"the {o.shape} {word} the {anchor.colour} {anchor.shape}", (i,), "relation")]
    return []


def _plural_colour(objects: list[ToyObject]) -> SceneExpression | None:
    for colour in COLOURS:
        targets = _matches(objects, lambda p: p.colour == colour)  # noqa: B023 (used at once)
        if len(targets) > 1:
            return SceneExpression(f"all {colour} shapes", targets, "plural")
    return None


def _plural_shape(objects: list[ToyObject]) -> SceneExpression | None:
    for shape in SHAPES:
        targets = _matches(objects, lambda p: p.shape == shape)  # noqa: B023 (used at once)
        if len(targets) > 1:
            return SceneExpression(f"every {shape}", targets, "plural")
    return None


def _absent(rng: np.random.Generator, objects: list[ToyObject], grey: bool) -> SceneExpression:
    colours = GREYS if grey else tuple(COLOURS)
    present = {o.pair for o in objects}
    while True:
        pair = colours[int(rng.integers(len(colours)))], SHAPES[int(rng.integers(len(SHAPES)))]
        if pair not in present:
            return SceneExpression(f"the {pair[0]} {pair[1]}", (), "none")
