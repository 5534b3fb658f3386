"""A Griffe extension that converts the roles of our docstrings (``:func:`~a.b.c```) to Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|obj):`(~?)([^`]+)`")


def plain(match: re.Match[str]) -> str:
    """The name as code; only its last part with ``~``."""
    return f"`{match[2].rsplit('.', 1)[-1] if match[1] else match[2]}`"


class Roles(griffe.Extension):
    """Rewrites docstrings when their object is loaded."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(plain, obj.docstring.value)
