"""A self-contained HTML page: text, tables, pictures and curves in one file. No metric code."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.utils.files import write_whole

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #1c2330; background: #fff; max-width: 1080px; margin: 0 auto;
       padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .5rem; padding-top: .8rem; border-top: 1px solid #dde2ea; }
p { max-width: 46rem; } p.note { color: #5a6474; font-size: .92rem; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #e4e8ee; text-align: right; }
th:first-child, td:first-child { text-align: left; } th { border-bottom: 2px solid #9aa5b4; font-weight: 600; }
figure { margin: .6rem 0; } figcaption { color: #3f4958; font-size: .88rem; max-width: 100%; }
.gallery { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.gallery figure { flex: 0 1 320px; min-width: 220px; margin: 0; } .gallery img { width: 100%; height: auto; }
img { max-width: 100%; height: auto; border-radius: 3px; }
a { color: inherit; }
code { background: #f1f4f8; padding: .1rem .3rem; border-radius: 3px; font-size: .9em; }
.wide { overflow-x: auto; } .wide img { min-width: 680px; }
div.say { max-width: 46rem; margin: 1rem 0; border-left: 4px solid #0072b2; background: #f2f7fb; padding: .6rem .9rem; }
.say ul { margin: .3rem 0 0; padding-left: 1.2rem; }
pre { background: #f1f4f8; padding: .7rem .9rem; border-radius: 4px; overflow-x: auto; font-size: .88rem; }
dl { max-width: 46rem; } dt { font-weight: 600; margin-top: .4rem; } dd { margin-left: 1.2rem; }
"""


class ReportPage:
    """Collects blocks in reading order and writes one file that needs no other."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._blocks: list[str] = [f"<h1>{html.escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        """A section."""
        self._blocks.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str, *, note: bool = False) -> None:
        """A paragraph; ``code`` between backticks."""
        parts = html.escape(text).split("`")
        body = "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(parts))
        self._blocks.append(f'<p class="note">{body}</p>' if note else f"<p>{body}</p>")

    def conclusion(self, text: str, *reasons: str) -> None:
        """What the numbers above say, set off from the text, and the reasons one by one."""
        listed = "".join(f"<li>{html.escape(r)}</li>" for r in reasons)
        told = f"<ul>{listed}</ul>" if reasons else ""
        self._blocks.append(f'<div class="say"><strong>{html.escape(text)}</strong>{told}</div>')

    def code(self, text: str) -> None:
        """Commands, as they stand."""
        self._blocks.append(f"<pre>{html.escape(text)}</pre>")

    def terms(self, terms: Mapping[str, str]) -> None:
        """Words and what they mean."""
        rows = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in terms.items())
        self._blocks.append(f"<dl>{rows}</dl>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str | float | None]], digits: int = 3) -> None:
        """Numbers with ``digits`` digits; None and -1 read n/a."""
        for row in rows:
            if len(row) != len(columns):
                raise UserError(f"A row of {len(row)} cells under {len(columns)} columns: {list(row)[:3]}.")
        head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
        body = "".join(f"<tr>{''.join(f'<td>{_cell(c, digits)}</td>' for c in row)}</tr>" for row in rows)
        self._blocks.append(
            f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def picture(self, image: Image.Image, caption: str = "") -> None:
        """One picture over the whole width; on a narrow screen it is scrolled rather than shrunk."""
        self._blocks.append(f'<div class="wide">{_figure(image, caption)}</div>')

    def gallery(self, images: Sequence[tuple[Image.Image, str]]) -> None:
        """Small pictures with captions, side by side."""
        self._blocks.append(f'<div class="gallery">{"".join(_figure(i, c) for i, c in images)}</div>')

    def links(self, images: Sequence[tuple[Image.Image, str, str]]) -> None:
        """Small photographs with captions, side by side; each leads to an address."""
        figures = "".join(
            f'<a href="{html.escape(address)}">{_figure(image, caption, "JPEG")}</a>'
            for image, caption, address in images
        )
        self._blocks.append(f'<div class="gallery">{figures}</div>')

    def curves(
        self,
        curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
        x_label: str,
        y_label: str,
        caption: str = "",
    ) -> None:
        """Lines of (x, y) by name in one plot."""
        self.picture(plot_curves(curves, x_label, y_label), caption)

    def bars(self, values: Mapping[str, float], y_label: str, caption: str = "", line: float | None = None) -> None:
        """One bar per name; ``line`` marks a level such as chance."""
        self.picture(plot_bars(values, y_label, line), caption)

    def write(self, path: str | Path) -> Path:
        """Write the page, whole or not at all."""
        body = "\n".join(self._blocks)
        return write_whole(
            path,
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width"><title>{html.escape(self.title)}</title><style>{_STYLE}</style></head>\n'
            f"<body>\n{body}\n</body></html>\n",
        )


def _cell(value: str | float | None, digits: int) -> str:
    if value is None or value == -1:
        return "n/a"
    return html.escape(value) if isinstance(value, str) else f"{value:.{digits}f}"


def _figure(image: Image.Image, caption: str, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    said = html.escape(caption)
    return (
        f'<figure><img src="data:image/{kind.lower()};base64,{data}" alt="{said}" width="{image.width}" '
        f'height="{image.height}">'
        f"<figcaption>{said}</figcaption></figure>"
    )


def plot_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str
) -> Image.Image:
    """Lines in the house's palette."""
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
    """Bars with their values written on top."""
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
    """A Matplotlib figure as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)  # type: ignore[arg-type]
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
