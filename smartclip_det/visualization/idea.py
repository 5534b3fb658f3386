"""Illustration of masked cosine: two texts use different dimensions of the same image vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.visualization.draw import PALETTE
from smartclip_det.visualization.report import rendered


@dataclass(frozen=True)
class IdeaText:
    """A text compared with an image.

    Attributes:
        text: the text.
        vector: ``[D]`` text vector.
        mask: ``[D]`` 0 or 1.
        masked: cosine on the kept dimensions.
        plain: cosine on all dimensions.
    """

    text: str
    vector: np.ndarray
    mask: np.ndarray
    masked: float
    plain: float


def draw_idea(image: Image.Image, vector: np.ndarray, texts: Sequence[IdeaText]) -> Image.Image:
    """Draw an image, its ``[D]`` vector, and the part of it that each text keeps.

    Dimensions are sorted: those kept by the first text only, by several texts, by the next text, and last those kept by
    no text. Red is positive, blue negative; masked dimensions are blank.

    Raises:
        UserError: for vectors of different lengths, or without texts.
    """
    if not texts or any(v.shape != vector.shape for t in texts for v in (t.vector, t.mask)):
        raise UserError("draw_idea needs at least one text, and vectors and masks of equal length.")
    from matplotlib.figure import Figure

    order = np.lexsort([_group([t.mask for t in texts])])
    figure = Figure(figsize=(10.4, 1.3 + 1.5 * len(texts)), dpi=200, layout="constrained")
    grid = figure.add_gridspec(1 + 3 * len(texts), 2, width_ratios=(1, 3.6))
    left = figure.add_subplot(grid[:, 0])
    left.imshow(np.asarray(image.convert("RGB")), interpolation="nearest")
    left.set_title("the image", fontsize=11)
    left.axis("off")
    _strip(figure.add_subplot(grid[0, 1]), vector[order], None, "image", "#222222")
    for n, t in enumerate(texts):
        colour = tuple(c / 255 for c in PALETTE[n % len(PALETTE)])
        mask, row = t.mask[order] > 0, 1 + 3 * n
        axes = figure.add_subplot(grid[row, 1])
        axes.set_title(
            f"“{t.text}”: cosine {t.masked:.2f} on the {int(mask.sum())} dimensions that it keeps, "
            f"{t.plain:.2f} on all {len(mask)}",
            fontsize=11,
            color=colour,
            loc="left",
        )
        _bars(axes, mask, "mask", colour)
        _strip(figure.add_subplot(grid[row + 1, 1]), vector[order], mask, "image", colour)
        _strip(figure.add_subplot(grid[row + 2, 1]), t.vector[order], mask, "text", colour)
    return rendered(figure)


def _group(masks: Sequence[np.ndarray]) -> np.ndarray:
    """``[D]`` sort key of each dimension: the mean index of the texts that keep it, and the end for none."""
    kept = np.stack(masks) > 0
    index = (kept * np.arange(len(kept))[:, None]).sum(axis=0) / np.maximum(kept.sum(axis=0), 1)
    return np.where(kept.any(axis=0), index, len(kept))


def _strip(axes: Any, values: np.ndarray, mask: np.ndarray | None, label: str, colour: Any) -> None:
    span = np.quantile(np.abs(values), 0.98) or 1.0
    shown = np.ma.masked_array(values, None if mask is None else ~mask)[None]
    axes.imshow(shown, aspect="auto", cmap="RdBu_r", vmin=-span, vmax=span, interpolation="nearest")
    _plain(axes, label, colour)


def _bars(axes: Any, mask: np.ndarray, label: str, colour: Any) -> None:
    from matplotlib.colors import ListedColormap

    axes.imshow(
        mask[None], aspect="auto", cmap=ListedColormap(["#ffffff", colour]), vmin=0, vmax=1, interpolation="nearest"
    )
    _plain(axes, label, colour)


def _plain(axes: Any, label: str, colour: Any) -> None:
    axes.set_yticks([0], [label], fontsize=10, color=colour)
    axes.set_xticks([])
    axes.tick_params(length=0)
