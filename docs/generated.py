"""Tables generated from the code: the public names of the package."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import zoo

REPO = Path(__file__).resolve().parents[1]


def names_table() -> str:
    """Names of ``smartclip_det.__all__`` with a link and the first sentence of their docstring."""
    tree = ast.parse((REPO / "smartclip_det/__init__.py").read_text(encoding="utf-8"))
    homes = next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and _is(n, "_HOMES"))
    parts = ["| name | what it is |", "|---|---|"]
    for name, home in sorted(homes.items(), key=lambda h: h[0].lower()):
        module = ast.parse((REPO / f"smartclip_det/{home.replace('.', '/')}.py").read_text(encoding="utf-8"))
        kinds = (ast.ClassDef, ast.FunctionDef)
        node = next((n for n in module.body if isinstance(n, kinds) and n.name == name), None)
        first = re.split(r"\n\n|(?<=\.)\s", ast.get_docstring(node) or "")[0] if node else ""
        text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join(first.split())).replace("|", "\\|").replace("``", "`")
        parts.append(f"| [`{name}`][smartclip_det.{home}.{name}] | {text} |")
    return "\n".join(parts)


def _is(node: ast.Assign, name: str) -> bool:
    return isinstance(node.targets[0], ast.Name) and node.targets[0].id == name


#: Comments in pages that are replaced by tables.
MARKS = {
    "<!-- api: names -->": names_table,
    "<!-- zoo: configs -->": zoo.configs_tables,
    "<!-- zoo: weights -->": zoo.weights_table,
    "<!-- zoo: published -->": zoo.published_table,
}


def expanded(markdown: str) -> str:
    """The page with its tables inserted."""
    for mark, table in MARKS.items():
        if mark in markdown:
            markdown = markdown.replace(mark, table())
    return markdown
