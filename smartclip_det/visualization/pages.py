"""HTML from the Jinja2 templates of this package. Values are escaped; undefined variables are errors."""

from __future__ import annotations

import base64
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("smartclip_det.visualization"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )


def render_page(template: str, **values: object) -> str:
    """Render a template of ``visualization/templates``; every value is escaped."""
    return _environment().get_template(template).render(values)


def data_uri(data: bytes, kind: str) -> str:
    """Encode an image file as a data URI; ``kind`` is the MIME subtype, e.g. ``png``."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
