"""A self-contained HTML page: text, tables, images and plots in one file. No metric code."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.utils.files import write_whole
from smartclip_det.visualization.pages import data_uri, render_page


class ReportPage:
    """Collects blocks in reading order and writes them to a single self-contained file."""

    def __init__(self, title: str) -> None:
        self.title = title
        #: Macro of templates/blocks.html, and its arguments.
        self._blocks: list[tuple[str, dict[str, Any]]] = []

    def heading(self, text: str) -> None:
        """A section."""
        self._add("heading", text=text)

    def text(self, text: str, *, note: bool = False) -> None:
        """Add a paragraph; text between backticks becomes ``code``."""
        self._add("text", text=text, note=note)

    def conclusion(self, text: str, *reasons: str) -> None:
        """Add a highlighted conclusion, and its reasons as a list."""
        self._add("conclusion", text=text, reasons=reasons)

    def code(self, text: str) -> None:
        """Add commands, verbatim."""
        self._add("code", text=text)

    def terms(self, terms: Mapping[str, str]) -> None:
        """Add terms and their definitions."""
        self._add("terms", terms=terms)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str | float | None]], digits: int = 3) -> None:
        """Add a table; numbers have ``digits`` digits, None and -1 are shown as n/a."""
        for row in rows:
            if len(row) != len(columns):
                raise UserError(f"A row of {len(row)} cells under {len(columns)} columns: {list(row)[:3]}.")
        self._add("table", columns=columns, rows=[[_cell(c, digits) for c in row] for row in rows])

    def picture(self, image: Image.Image, caption: str = "") -> None:
        """Add an image at full width; narrow screens scroll it instead of shrinking it."""
        self._add("picture", image=_figure(image, caption))

    def gallery(self, images: Sequence[tuple[Image.Image, str]]) -> None:
        """Add small images with captions, in rows."""
        self._add("gallery", images=[_figure(i, c) for i, c in images])

    def links(self, images: Sequence[tuple[Image.Image, str, str]]) -> None:
        """Add small photographs with captions, in rows; each links to a URL."""
        self._add("gallery", images=[_figure(i, c, "jpeg", link) for i, c, link in images])

    def curves(
        self,
        curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
        x_label: str,
        y_label: str,
        caption: str = "",
    ) -> None:
        """Add a line plot of (x, y) by name."""
        self.picture(plot_curves(curves, x_label, y_label), caption)

    def bars(self, values: Mapping[str, float], y_label: str, caption: str = "", line: float | None = None) -> None:
        """Add a bar plot by name; ``line`` marks a level such as chance."""
        self.picture(plot_bars(values, y_label, line), caption)

    def write(self, path: str | Path) -> Path:
        """Write the page, atomically."""
        return write_whole(path, render_page("report.html", title=self.title, blocks=self._blocks))

    def _add(self, kind: str, **values: Any) -> None:
        self._blocks.append((kind, values))


def _cell(value: str | float | None, digits: int) -> str:
    if value is None or value == -1:
        return "n/a"
    return value if isinstance(value, str) else f"{value:.{digits}f}"


def _figure(image: Image.Image, caption: str, kind: str = "png", link: str = "") -> dict[str, Any]:
    """Arguments of the macro ``figure``."""
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True)
    source = data_uri(buffer.getvalue(), kind)
    return {"source": source, "caption": caption, "width": image.width, "height": image.height, "link": link}


def plot_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str
) -> Image.Image:
    """Line plot in the package's palette."""
    from matplotlib.figure import Figure

    from smartclip_det.visualization.draw import PALETTE

    figure = Figure(figsize=(7.2, 3.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    for n, (name, (x, y)) in enumerate(curves.items()):
        axes.plot(x, y, label=name, color=[c / 255 for c in PALETTE[n % len(PALETTE)]], linewidth=1.6)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        axes.legend(frameon=False)
    return rendered(figure)


def plot_bars(values: Mapping[str, float], y_label: str, line: float | None = None) -> Image.Image:
    """Bar plot with values above the bars."""
    from matplotlib.figure import Figure

    from smartclip_det.visualization.draw import PALETTE

    figure = Figure(figsize=(7.2, 2.8), dpi=120, layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(
        [name.replace(" ", "\n") for name in values],
        list(values.values()),
        color=[c / 255 for c in PALETTE[0]],
        width=0.6,
    )
    axes.bar_label(bars, fmt="%.2f", padding=2)
    axes.tick_params(axis="x", labelsize=8)
    if line is not None:
        axes.axhline(line, color="#555", linestyle="--", linewidth=1)
    axes.set_ylabel(y_label)
    axes.margins(y=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    return rendered(figure)


def rendered(figure: object) -> Image.Image:
    """Render a Matplotlib figure as an image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)  # type: ignore[arg-type]
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
