"""Messages on the troubleshooting page are in the code; small differences in wording are allowed."""

from __future__ import annotations

import ast
import re

import pytest

from tests.conftest import REPO

#: Messages of other software.
FOREIGN = ("No module named 'mmcv._ext'", "ImportError: libGL.so.1: cannot open shared object file", "out of memory")
PAGE = (REPO / "docs/tasks/troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = [m for m in re.findall(r"^> `([^`]+)`$", PAGE, flags=re.M) if m not in FOREIGN]


def words(text):
    return {w.lower() for w in re.findall(r"[A-Za-z_]{2,}", text.replace("...", " "))}


@pytest.fixture(scope="module")
def written():
    """The words of every string in the package that could be a message, without docstrings."""
    found = []
    for path in (REPO / "smartclip_det").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        documentation = {id(n.value) for n in nodes if isinstance(n, ast.Expr)}
        for node in nodes:
            if id(node) in documentation:
                continue
            if isinstance(node, ast.JoinedStr):
                found.append(words(" ".join(v.value for v in node.values if isinstance(v, ast.Constant))))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(words(node.value))
    return found


def nearest(message, written):
    wanted = words(message)
    return max(len(wanted & have) / len(wanted) for have in written if len(have) < 60)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_the_page_is_in_the_code(message, written):
    assert nearest(message, written) >= 0.6


def test_a_message_that_is_nowhere_is_seen(written):
    assert len(MESSAGES) > 20
    assert nearest("The frobnicator of ... is upside down: turn the handle twice, then whistle.", written) < 0.6
