"""What the README files say can be done: python blocks run, shell blocks are taken word by word, links exist."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys

import pytest

from smartclip_det.cli.dispatch import find_verb, parser_of
from smartclip_det.engine.config import load_config
from tests.conftest import REPO

PAGES = [REPO / "README.md", REPO / "data/README.md", *sorted((REPO / "configs").rglob("README.md"))]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)


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


#: Blocks are run by bash, whose loops, quotes and comments are real; what they would start only says its arguments.
TOLD = r"""
tell() { printf '%s\0' "$@"; printf '\n'; }
for name in smartclip-det bash make python .venv/bin/python ls; do eval "function $name { tell $name \"\$@\"; }"; done
"""
#: Numbers that the reader puts in.
PLACEHOLDERS = {"T": "0.5"}


def calls(page):
    """Every command that the shell blocks of a page start, as its words."""
    for block in blocks(page, "bash"):
        done = subprocess.run(["bash", "-euc", TOLD + block], capture_output=True, text=True, cwd=REPO, check=False)
        assert (done.returncode, done.stderr) == (0, ""), block
        for line in done.stdout.splitlines():
            yield [PLACEHOLDERS.get(w, w) for w in line.split("\0")[:-1]]


def words_of_verb(call):
    """What a call gives to ``smartclip-det``, under the name of a tool, too; None where it starts something else."""
    program, *rest = call
    if program == "smartclip-det":
        return rest
    if program in ("python", ".venv/bin/python") and rest[0].startswith("tools/"):
        verb = re.search(r'run_verb\("([a-z -]+)"\)', (REPO / rest[0]).read_text(encoding="utf-8"))
        return [*verb[1].split(), *rest[1:]]
    if program == "bash":
        verb, places = {"tools/dist_train.sh": ("train", 1), "tools/dist_test.sh": ("test", 2)}[rest[0]]
        assert rest[places + 1].isdigit(), f"number of processes: {rest}"
        return [verb, *rest[1 : places + 1], *rest[places + 2 :]]
    return None


@functools.cache
def open_config(path, options):
    """A config with the overrides of a command line: keys that it does not have are an error."""
    return load_config(REPO / path, json.loads(options))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_shell_blocks_are_taken_by_bash_and_by_the_verbs(page, capsys):
    for call in calls(page):
        words = words_of_verb(call)
        if words is None:
            assert call[0] in ("make", "ls") or call[1:] == ["-m", "smartclip_det.utils.env"], call
            continue
        verb, rest = find_verb(words)
        try:
            args = parser_of(verb).parse_args(rest)
        except SystemExit:
            pytest.fail(f"{' '.join(call)}: {capsys.readouterr().err}")
        config = str(getattr(args, "config", None) or "")
        if config.startswith("configs/"):
            open_config(config, json.dumps(getattr(args, "cfg_options", None) or {}))
        for path in (w for w in words if w.startswith("configs/")):
            assert (REPO / path).is_file(), path
    assert "note:" not in capsys.readouterr().err, "spellings of before"


def test_what_needs_no_data_runs():
    """The check of an installation, and what ``make`` would do."""
    for call in calls(REPO / "README.md"):
        if call[:2] == [".venv/bin/python", "-m"]:
            done = subprocess.run([sys.executable, *call[1:]], capture_output=True, text=True, cwd=REPO, check=False)
        elif call[0] == "make":
            done = subprocess.run([*call, "--dry-run"], capture_output=True, text=True, cwd=REPO, check=False)
        else:
            continue
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout


def test_first_screen():
    text = (REPO / "README.md").read_text(encoding="utf-8")
    before = text.split("make setup")[0]
    assert len(before) < 3000
    assert len(before.splitlines()) < 40


def test_metafiles_name_every_config():
    for folder in sorted(p.name for p in (REPO / "configs").iterdir() if p.is_dir() and p.name != "_base_"):
        meta = (REPO / f"configs/{folder}/metafile.yml").read_text()
        for path in (REPO / f"configs/{folder}").glob("*.py"):
            assert f"Config: configs/{folder}/{path.name}" in meta
