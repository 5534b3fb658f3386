"""Scenes of the toy world: objects, positions and appearance. A pure function of (seed, split, index).

Shape letters: H W pixels. Boxes are xyxy pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.datasets.toy_world.shapes import (
    BASE_SHAPES,
    COLOURS,
    GREYS,
    NOVEL_SHAPES,
    SHAPES,
    TEXTURES,
    paint,
    shape_coverage,
)

SPLITS = ("train", "val", "testA", "testB")
#: Radius relative to the shorter side.
SIZES = {"small": 0.125, "medium": 0.2, "large": 0.29}
#: Names of backgrounds, and their brightness ranges.
BACKGROUNDS = {"pale": (195, 235), "dim": (60, 95), "middling": (140, 175)}
#: Centres lie on a grid with spacing (nominal side) / LATTICE. With sizes and positions from a small set, a tiny
#: transformer starts to learn shapes within a few hundred steps; with continuous ones it did not (see
#: configs/toy/README.md).
LATTICE = 8
#: Colours that grey-scale images do not contain; only these occur in held-out pairs.
_BRIGHT = tuple(c for c in COLOURS if c not in GREYS)
#: Maximum number of held-out pairs.
_MOST_HELD_OUT = len(_BRIGHT) * len(SHAPES) // 2
#: Probabilities of one to five objects.
COUNTS = (0.5, 0.25, 0.15, 0.07, 0.03)


@dataclass(frozen=True)
class WorldConfig:
    """Size and seed of a world.

    Attributes:
        seed: determines everything.
        train: training images.
        val: validation images.
        test: images of each of testA and testB.
        side: nominal side in pixels; other aspect ratios have about the same area.
        held_out: number of colour-shape pairs (of 180) that training never shows, not even in captions; at most half of
            the 126 that are not black, gray or white.
    """

    seed: int = 0
    train: int = 20000
    val: int = 600
    test: int = 300
    side: int = 128
    held_out: int = 36

    def count(self, split: str) -> int:
        """Number of images in a split."""
        check_choice("split", split, SPLITS)
        return {"train": self.train, "val": self.val}.get(split, self.test)


@dataclass
class ToyObject:
    """One object.

    Attributes:
        shape: one of ``SHAPES``.
        colour: one of ``COLOURS``.
        texture: one of ``TEXTURES``.
        size: ``small | medium | large``.
        box: xyxy of the visible part, integer pixels.
        mask: ``[H, W]`` bool, visible part.
        visible: visible fraction of the object.
    """

    shape: str
    colour: str
    texture: str
    size: str
    box: tuple[int, int, int, int]
    mask: np.ndarray
    visible: float

    @property
    def pair(self) -> tuple[str, str]:
        """Colour and shape."""
        return self.colour, self.shape

    @property
    def partly_hidden(self) -> bool:
        """Whether captions describe it as partly hidden."""
        return self.visible < 0.9

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of the box, (x, y)."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass
class Scene:
    """One image with its objects, back to front."""

    index: int
    split: str
    image: np.ndarray
    objects: list[ToyObject]
    grey: bool
    background: str
    rng: np.random.Generator = field(repr=False)


class ToyWorld:
    """Generates scenes."""

    def __init__(self, config: WorldConfig | None = None) -> None:
        self.config = config or WorldConfig()
        if self.config.side < 32 or min(self.config.train, self.config.val, self.config.test) < 1:
            raise UserError(f"A toy world needs side >= 32 and at least one image per split; given {self.config}.")
        if not 0 <= self.config.held_out <= _MOST_HELD_OUT:
            raise UserError(
                f"held_out must be in 0..{_MOST_HELD_OUT}: training needs every shape in some colours; "
                f"given {self.config.held_out}."
            )

    @cached_property
    def held_out_pairs(self) -> frozenset[tuple[str, str]]:
        """Colour-shape pairs excluded from training; never with a grey colour.

        The number of excluded pairs per shape, and per colour, differs by at most one, so none is much rarer.
        """
        rng = np.random.default_rng([self.config.seed, 7])
        colours, shapes = rng.permutation(_BRIGHT).tolist(), rng.permutation(SHAPES).tolist()
        # Along the diagonals of the colour-shape table, which are shifted when they would repeat.
        turn = math.lcm(len(colours), len(shapes))
        return frozenset(
            (colours[(n + n // turn) % len(colours)], shapes[n % len(shapes)]) for n in range(self.config.held_out)
        )

    @cached_property
    def pair_weights(self) -> dict[tuple[str, str], float]:
        """Sampling weight of each pair in training: most are equal, some are low, a few very low.

        This gives LVIS frequent, common and rare classes while colours remain nearly independent of shapes, which is
        not the case for a heavy tail.
        """
        rng = np.random.default_rng([self.config.seed, 8])
        pairs = [(c, s) for c in COLOURS for s in SHAPES]
        ranks = rng.permutation(len(pairs)).tolist()
        return {p: 0.02 if r < 10 else 0.25 if r < 50 else 1.0 for p, r in zip(pairs, ranks, strict=True)}

    def scene(self, split: str, index: int) -> Scene:
        """The ``index``-th scene of a split; the same for every call and on every machine."""
        count = self.config.count(split)
        if not 0 <= index < count:
            raise UserError(f"{split} has {count} scenes; scene {index} does not exist.")
        rng = np.random.default_rng([self.config.seed, SPLITS.index(split), index])
        grey = bool(rng.random() < 0.04)
        height, width = self._canvas_size(rng)
        canvas, background = _background(rng, height, width, grey)
        covers: list[np.ndarray] = []
        facts: list[tuple[str, str, str, str]] = []
        for _ in range(1 + int(rng.choice(len(COUNTS), p=COUNTS))):
            colour, shape = self._draw_pair(rng, split, grey)
            texture = TEXTURES[int(rng.choice(len(TEXTURES), p=[0.7, 0.1, 0.1, 0.1]))]
            size = ("small", "medium", "large")[int(rng.choice(3, p=[0.3, 0.4, 0.3]))]
            placed = _place(rng, shape, size, (height, width), covers, self.config.side / LATTICE)
            if placed is None:
                continue
            coverage, radius = placed
            paint(canvas, coverage, colour, texture, radius)
            covers.append(coverage >= 0.5)
            facts.append((shape, colour, texture, size))
        image = np.clip(np.round(canvas), 0, 255).astype(np.uint8)
        return Scene(index, split, image, _visible_objects(covers, facts), grey, background, rng)

    def _canvas_size(self, rng: np.random.Generator) -> tuple[int, int]:
        side = self.config.side
        if rng.random() < 0.7:
            return side, side
        ratio = float(np.exp(rng.uniform(-0.7, 0.7)))
        return max(24, round(side / ratio**0.5)), max(24, round(side * ratio**0.5))

    def _draw_pair(self, rng: np.random.Generator, split: str, grey: bool) -> tuple[str, str]:
        """Draw a colour and a shape: long-tailed in training, else uniform; testA: base shapes, testB: novel ones."""
        colours = GREYS if grey else tuple(COLOURS)
        if split == "train":
            pairs = [p for p in self.pair_weights if p[0] in colours and p not in self.held_out_pairs]
            weights = np.array([self.pair_weights[p] for p in pairs])
            return pairs[int(rng.choice(len(pairs), p=weights / weights.sum()))]
        shapes = {"testA": BASE_SHAPES, "testB": NOVEL_SHAPES}.get(split, SHAPES)
        return colours[int(rng.integers(len(colours)))], shapes[int(rng.integers(len(shapes)))]


def _background(rng: np.random.Generator, height: int, width: int, grey: bool) -> tuple[np.ndarray, str]:
    """``[H, W, 3]`` float RGB and the name of the background."""
    word = list(BACKGROUNDS)[int(rng.choice(3, p=(0.6, 0.2, 0.2)))]
    low, high = BACKGROUNDS[word]
    first, second = (np.full(3, rng.uniform(low, high)) + (0 if grey else rng.uniform(-12, 12, 3)) for _ in range(2))
    ramp = np.linspace(0, 1, width)[None, :, None] if rng.random() < 0.5 else np.linspace(0, 1, height)[:, None, None]
    canvas = first * (1 - ramp) + second * ramp + np.zeros((height, width, 1))
    noise = rng.normal(0, rng.uniform(0, 5), (height, width, 1 if grey else 3))
    return canvas + noise, word


def _place(
    rng: np.random.Generator, shape: str, size: str, canvas: tuple[int, int], covers: list[np.ndarray], step: float
) -> tuple[np.ndarray, float] | None:
    """A position where every earlier object stays at least 60 % visible; None if twenty tries fail."""
    radius = SIZES[size] * min(canvas)
    margin = 0.6 * radius
    for _ in range(20):
        # Grid points inside the margin; canvases are large enough for at least one.
        x, y = (
            step * int(rng.integers(math.ceil(margin / step), int((length - margin) // step) + 1))
            for length in (canvas[1], canvas[0])
        )
        coverage = shape_coverage(shape, canvas, (x, y), radius)
        cover = coverage >= 0.5
        if cover.sum() < 12:
            continue
        visible = _visible_masks([*covers, cover])
        if all(v.sum() >= max(12, 0.6 * c.sum()) for v, c in zip(visible, [*covers, cover], strict=True)):
            return coverage, radius
    return None


def _visible_masks(covers: list[np.ndarray]) -> list[np.ndarray]:
    """Parts not hidden by later objects, back to front."""
    if not covers:
        return []
    out, above = [], np.zeros_like(covers[0])
    for cover in reversed(covers):
        out.append(cover & ~above)
        above = above | cover
    return out[::-1]


def _visible_objects(covers: list[np.ndarray], facts: list[tuple[str, str, str, str]]) -> list[ToyObject]:
    objects = []
    for cover, mask, (shape, colour, texture, size) in zip(covers, _visible_masks(covers), facts, strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        objects.append(ToyObject(shape, colour, texture, size, box, mask, float(mask.sum() / cover.sum())))
    return objects
