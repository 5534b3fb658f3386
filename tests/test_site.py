"""The documentation site without building it: every page is in the navigation; links are rewritten or rejected.

``make docs`` builds it, and ``.ci/run`` calls that.
"""

from __future__ import annotations

import importlib
import logging
import sys
from types import SimpleNamespace

import pytest
import yaml

from tests.conftest import REPO

pytest.importorskip("mkdocs", reason="the site needs the extra docs")


@pytest.fixture(scope="module")
def hooks():
    sys.path.insert(0, str(REPO / "docs"))
    try:
        yield importlib.import_module("hooks")
    finally:
        sys.path.remove(str(REPO / "docs"))
        for name in ("hooks", "generated", "zoo", "roles"):
            sys.modules.pop(name, None)


class Loader(yaml.SafeLoader):
    """MkDocs' own YAML tags are ignored."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def leaves(node):
    if isinstance(node, str):
        return [node]
    children = node.values() if isinstance(node, dict) else node
    return [leaf for child in children for leaf in leaves(child)]


def test_every_page_is_in_the_navigation_once(hooks):
    nav = leaves(yaml.load((REPO / "mkdocs.yml").read_text(encoding="utf-8"), Loader)["nav"])
    written = [*(REPO / "docs").rglob("*.md"), *(REPO / "docs").rglob("*.ipynb")]
    pages = {p.relative_to(REPO / "docs").with_suffix(".md").as_posix() for p in written}
    assert sorted(nav) == sorted(pages | set(hooks.OUTSIDE.values()))


@pytest.fixture
def renewed(hooks, caplog):
    def rewrite(place, markdown, has=()):
        files = SimpleNamespace(get_file_from_path=lambda path: path if path in has else None)
        page = SimpleNamespace(file=SimpleNamespace(src_uri=place))
        with caplog.at_level(logging.WARNING):
            return hooks.on_page_markdown(markdown, page, None, files)

    return rewrite


@pytest.mark.parametrize(
    ("place", "link", "target", "expected"),
    [
        ("index.md", "own-data.md#a", "own-data.md", "own-data.md#a"),
        ("tasks/detect.md", "../index.md", "index.md", "../index.md"),
        ("index.md", "../configs/toy/README.md#study", "recipes/toy.md", "recipes/toy.md#study"),
        ("recipes/toy.md", "../../data/README.md", "data.md", "../data.md"),
        ("contributing.md", "docs/releasing.md", "releasing.md", "releasing.md"),
        ("recipes/toy.md", "clip-align_toy.py", "files/configs/toy/clip-align_toy.py", None),
    ],
)
def test_links_of_the_repository_lead_to_pages_and_copies(renewed, caplog, place, link, target, expected):
    expected = expected or "../" * place.count("/") + target
    assert renewed(place, f"[a]({link}) `[a](b.md)`", {target}) == f"[a]({expected}) `[a](b.md)`"
    assert not caplog.records


@pytest.mark.parametrize("link", ["nothing.md", "../smartclip_det/nothing.py", "../../elsewhere.md"])
def test_a_dead_link_is_a_warning_which_fails_the_build(renewed, caplog, link):
    renewed("index.md", f"[a]({link})")
    assert "is not there" in caplog.text


def test_other_addresses_and_code_are_left_alone(renewed, caplog):
    text = "[a](https://example.org/x.md) [b](#here)\n\n```text\n[c](no.md)\n```\n\nEnd.\n"
    assert renewed("index.md", text) == text
    assert not caplog.records


@pytest.mark.parametrize(
    ("html", "warned"),
    [
        ('<script src="https://example.org/a.js"></script>', True),
        ('<link rel="stylesheet" href="https://example.org/a.css">', True),
        ('<img alt="a" src=https://example.org/a.png>', True),
        ('<a href="https://example.org">x</a><script src="assets/a.js"></script><img src="a.png">', False),
    ],
)
def test_what_a_browser_would_fetch_is_a_warning(hooks, caplog, html, warned):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    with caplog.at_level(logging.WARNING):
        assert hooks.on_post_page(html, page, None) == html
    assert bool(caplog.records) == warned


def test_marks_of_tables_are_replaced(hooks):
    for page in ("zoo.md", "api/index.md"):
        text = hooks.expanded((REPO / "docs" / page).read_text(encoding="utf-8"))
        assert "<!--" not in text
        assert text.count("\n| ") > 10
    registry = hooks.expanded("<!-- zoo: weights -->")
    assert "`smartclip-b16` | towers | 224 px | 248 | not stated" in registry


def test_roles_of_docstrings_become_code(hooks):
    roles = importlib.import_module("roles")
    text = "See :func:`~a.b.c`, :class:`Predictor` and ``x``."
    assert roles.ROLE.sub(roles.plain, text) == "See `c`, `Predictor` and ``x``."
