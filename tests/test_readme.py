"""What the README files say can be done: python blocks run, and every tool, option, config and link exists."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from smartclip_det.cli.dispatch import find_verb, parser_of
from tests.conftest import REPO

PAGES = [REPO / "README.md", REPO / "data/README.md", *sorted((REPO / "configs").rglob("README.md"))]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)


def commands(page):
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.split(" #")[0].strip()
            if command:
                yield command


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_python_blocks_run(page):
    for block in blocks(page, "python"):
        done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, cwd=REPO, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_commands_name_real_tools_options_and_configs(page):
    for command in commands(page):
        for path in re.findall(r"\bconfigs/\S+\.py\b", command):
            assert (REPO / path).is_file(), path
        tool = re.search(r"\b(tools/(?:\w+/)*\w+\.(?:py|sh))\b", command)
        if tool is None:
            continue
        assert (REPO / tool[1]).is_file(), tool[1]
        if tool[1].endswith(".py"):
            for option in re.findall(r"(?<=\s)--[a-z0-9-]+", command):
                assert option in options_of(tool[1]), f"{option} in {command}"


def options_of(tool):
    """Options of the verb that a tool starts; today's spellings alone."""
    source = (REPO / tool).read_text(encoding="utf-8")
    verb = re.search(r'run_verb\("([a-z -]+)"\)', source)
    if verb is None:
        return set(re.findall(r'"(--[a-z0-9-]+)"', source)) | {"--help"}
    return options_of_verb(verb[1])


def options_of_verb(verb):
    return {o for a in parser_of(verb)._actions for o in a.option_strings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_commands_name_real_verbs_and_their_options(page):
    for command in commands(page):
        words = command.split("smartclip-det ", 1)
        if len(words) == 1:
            continue
        verb, rest = find_verb(words[1].split())
        for option in (w for w in rest if w.startswith("--")):
            assert option in options_of_verb(verb), f"{option} in {command}"


def test_first_screen():
    text = (REPO / "README.md").read_text(encoding="utf-8")
    before = text.split("make setup")[0]
    assert len(before) < 3000
    assert len(before.splitlines()) < 40


def test_make_targets_of_the_readme_exist():
    makefile = (REPO / "Makefile").read_text()
    for command in commands(REPO / "README.md"):
        if command.startswith("make "):
            assert re.search(rf"^{command.split()[1]}:", makefile, flags=re.M), command


def test_metafiles_name_every_config():
    for folder in sorted(p.name for p in (REPO / "configs").iterdir() if p.is_dir() and p.name != "_base_"):
        meta = (REPO / f"configs/{folder}/metafile.yml").read_text()
        for path in (REPO / f"configs/{folder}").glob("*.py"):
            assert f"Config: configs/{folder}/{path.name}" in meta
