"""Commands and paths outside of shell blocks: help texts, docstrings, messages, notebooks and prose.

Whole command lines (examples of help texts, indented or continued ones) are parsed. In prose a command is often
shortened, so its verb must exist and each option must be one of the verb's.
"""

from __future__ import annotations

import ast
import re

import pytest

from smartclip_det.cli import dispatch
from smartclip_det.cli.options import renewed
from smartclip_det.utils.config_files import config_names
from tests.conftest import REPO
from tests.documented import PAGES, blocks, calls, parse, words_of_commands, words_of_verb

#: Verb as a word of its own: ``smartclip-det VERB --help``.
PLACEHOLDER = re.compile(r"[A-Z]+$")
FORMS = [REPO / ".github/pull_request_template.md", *sorted((REPO / ".github/ISSUE_TEMPLATE").glob("*.yml"))]
SOURCES = sorted(
    p for folder in ("smartclip_det", "tools", "configs", "docs") for p in (REPO / folder).rglob("*.py") if p.is_file()
)


def prose(page):
    """A page without its fenced blocks."""
    return re.sub(r"^ *(`{3,}).*?^ *\1`*$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def strings(path):
    """Text constants of a module; docstrings, too. Parts of an f-string are separate."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def paragraphs(text):
    """Paragraphs of a text as lists of lines, continuations joined; and whether all of a paragraph are commands."""
    split = re.split(r"\n\s*\n", re.sub(r"\\\n\s*", "", text.strip()))
    lines = [[line.strip() for line in p.splitlines()] for p in split]
    return [(p, all(re.match(r"(smartclip-det|bash) ", x) for x in p)) for p in lines]


def whole_lines(text):
    """Command lines on lines of their own."""
    return [line for lines, commands in paragraphs(text) if commands for line in lines]


def check_mention(text):
    """Check the verb and the options of a command inside a sentence."""
    words = text.split()
    if not words or PLACEHOLDER.match(words[0]) or not re.match(r"-?-?[a-z]", words[0]):
        return
    if words[0].strip("`.,;:)") in ("--help", "--version"):
        return
    words = [w.strip("`.,;:()'\"") for w in words]
    known = {v.split()[0] for v in dispatch.VERBS}
    assert words[0] in known, f"no verb {words[0]}: smartclip-det {text}"
    group = [v for v in dispatch.VERBS if v.startswith(f"{words[0]} ")]
    verb = words[0] if words[0] in dispatch.VERBS else " ".join(words[:2])
    if group and verb not in dispatch.VERBS:
        assert len(words) == 1, f"no verb {verb}"
        return
    options = {o for a in dispatch.parser_of(verb)._actions for o in a.option_strings}
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in options, f"smartclip-det {verb} has no {word}"
    renewed(words, getattr(dispatch.module_of(verb), "OLD", ()))


def mentions(text):
    """What follows ``smartclip-det`` in the sentences of a text."""
    flat = [" ".join(line) for line, commands in paragraphs(text) if not commands]
    pattern = re.compile(r"(?<![\w/.-])smartclip-det ((?:[^`.,:;()\"]|[.,:](?=\w))*)")
    return [m[1] for sentences in flat for m in pattern.finditer(sentences)]


@pytest.mark.parametrize("verb", list(dispatch.VERBS))
def test_examples_of_help_texts_are_read(verb, tmp_path):
    lines = whole_lines(dispatch.module_of(verb).__doc__)
    assert lines, verb
    for line in lines:
        for call in words_of_commands(line, tmp_path):
            parse(words_of_verb(call))


def test_whole_command_lines_of_reports_are_read(tmp_path):
    found = [
        line
        for path in SOURCES
        if "cli" not in path.parts
        for text in strings(path)
        for line in whole_lines(text)
        if " -" in line
    ]
    assert len(found) > 5
    for line in found:
        for call in words_of_commands(line, tmp_path):
            parse(words_of_verb(call))


@pytest.mark.parametrize("page", [*PAGES, *FORMS], ids=lambda p: str(p.relative_to(REPO)))
def test_commands_in_prose_exist(page, capsys):
    for span in re.findall(r"`+(smartclip-det [^`]+)`+", prose(page)):
        check_mention(span.partition(" ")[2])
    assert "note:" not in capsys.readouterr().err


def test_commands_in_docstrings_and_messages_exist(capsys):
    count = 0
    for path in SOURCES:
        for text in strings(path):
            for said in mentions(text):
                check_mention(said)
                count += 1
    assert count > 60
    assert "note:" not in capsys.readouterr().err


@pytest.mark.parametrize("said", ["frobnicate", "demo --textz a", "study frobnicate", "calibrate --ann a --imagez b"])
def test_a_wrong_mention_is_seen(said):
    with pytest.raises(AssertionError, match="no "):
        check_mention(said)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_paths_in_prose_exist(page):
    """Also those of python blocks: configs by path or by their packaged name."""
    spans = re.findall(r"`+([^`\n]+)`+", prose(page)) + re.findall(r'"([^"\n]+)"', "\n".join(blocks(page, "python")))
    folders = {p.split("/")[0] for p in config_names()}
    for span in spans:
        if not re.fullmatch(r"[\w./*-]+", span) or "..." in span:
            continue
        top = span.split("/")[0]
        if top in ("configs", "tools", "docs", "tests", "smartclip_det", ".ci", ".github") and "/" in span:
            assert list(REPO.glob(span.rstrip("/"))), f"no {span}"
        elif top in folders and span.count("/") == 1 and not span.endswith("/"):
            assert span.removesuffix(".py") in config_names(), f"no config {span}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_detectors_are_opened_with_their_towers(page, tmp_path):
    """A packaged config has random towers, and detectors trained on frozen ones refuse them."""
    for block in blocks(page, "python"):
        assert "from_config(" not in block or "towers.checkpoint" in block, block
    for call in calls(page, tmp_path):
        words = words_of_verb(call)
        if words is None or "--checkpoint" not in words or "--config" not in words:
            continue
        args = parse(words)[1]
        if args.config.removeprefix("configs/").removesuffix(".py") in config_names():
            given = getattr(args, "encoder", None) or "towers.checkpoint" in (getattr(args, "cfg_options", None) or {})
            assert given, " ".join(words)


def anchors(page):
    """Anchors of a page's headings, as GitHub and MkDocs form them."""
    found = re.findall(r"^#+ (.+)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"`", "", h)).strip().lower().replace(" ", "-") for h in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_anchors_of_links_exist(page):
    for link, anchor in re.findall(r"\]\(([^)#:\s]*)#([^)\s]+)\)", prose(page)):
        target = (page.parent / link).resolve() if link else page
        if target.suffix == ".md" and "/api/" not in str(target):  # The API's anchors come from mkdocstrings.
            assert anchor in anchors(target), f"{link}#{anchor}"
