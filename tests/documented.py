"""Commands as the documentation writes them: blocks are read by bash, and their words by the parsers of the verbs."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import shutil
import subprocess
import textwrap

from smartclip_det.cli.dispatch import find_verb, parser_of
from smartclip_det.engine.config import load_config
from smartclip_det.utils.config_files import config_names
from tests.conftest import REPO

READMES = [REPO / "README.md", REPO / "data/README.md", *sorted((REPO / "configs").rglob("README.md"))]
DOCS = [REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").rglob("*.md"))]
PAGES = [*READMES, *DOCS]


def blocks(page, language):
    """Fenced blocks, including those indented in lists."""
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```$", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return [textwrap.dedent(b) for b in found]


#: Blocks are read by bash, whose loops, quotes and comments are real. Nothing that they name is started: no program is
#: on the path, so each word falls to the handler, and a restricted shell takes no path of a program and writes no file.
RECORD = r"""
command_not_found_handle() { printf '%s\0' "$@"; printf '\n'; }
function .venv/bin/python { command_not_found_handle .venv/bin/python "$@"; }
function source { command_not_found_handle source "$@"; }
"""
#: Third-party programs used on pages.
PROGRAMS = ("git", "ls", "make", "pip", "pre-commit", "pytest", "source", "uv")
#: Placeholders for the reader's numbers.
PLACEHOLDERS = {"T": "0.5"}


def words_of_commands(block, folder):
    """The words of every command that a block would run inside ``folder``."""
    nowhere = folder / "empty"
    nowhere.mkdir(exist_ok=True)
    done = subprocess.run(
        [shutil.which("bash"), "--restricted", "--norc", "--noprofile", "-euc", RECORD + block],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
        env={"PATH": str(nowhere)},
    )
    assert (done.returncode, done.stderr) == (0, ""), f"{block}\n{done.stderr}"
    return [[PLACEHOLDERS.get(w, w) for w in line.split("\0")[:-1]] for line in done.stdout.splitlines()]


def calls(page, folder):
    """The words of every command in the shell blocks of a page."""
    return [words for block in blocks(page, "bash") for words in words_of_commands(block, folder)]


def words_of_verb(call):
    """Arguments of a call of ``smartclip-det``, also through a tool script; None for other programs."""
    program, *rest = call
    if program == "smartclip-det":
        return rest
    if program in ("python", ".venv/bin/python") and rest[0].startswith("tools/"):
        verb = re.search(r'run_verb\("([a-z -]+)"\)', (REPO / rest[0]).read_text(encoding="utf-8"))
        return [*verb[1].split(), *rest[1:]]
    if program == "bash":
        if rest[0] == "tools/slurm_train.sh":  # Partition and job name come first.
            return ["train", *rest[3:]]
        verb, places = {"tools/dist_train.sh": ("train", 1), "tools/dist_test.sh": ("test", 2)}[rest[0]]
        assert rest[places + 1].isdigit(), f"number of processes: {rest}"
        return [verb, *rest[1 : places + 1], *rest[places + 2 :]]
    return None


CONFIG_FOLDERS = {p.parent.name for p in (REPO / "configs").rglob("*.py")}


@functools.cache
def open_config(path, options):
    """A config with the overrides of a command line: keys that it does not have are an error."""
    return load_config(REPO / path, json.loads(options))


def parse(words):
    """Parse the words after ``smartclip-det`` as the program does; their config must open with its overrides."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        verb, rest = find_verb(words)
        try:
            args = parser_of(verb).parse_args(rest)
        except SystemExit as error:
            raise AssertionError(f"{' '.join(words)}: {said.getvalue()}") from error
    assert "note:" not in said.getvalue(), f"old spelling: {said.getvalue()}"
    config = str(getattr(args, "config", None) or "")
    if config in config_names():
        config = f"configs/{config}.py"
    if config.startswith("configs/"):
        open_config(config, json.dumps(getattr(args, "cfg_options", None) or {}))
    else:
        assert config.split("/")[0] not in CONFIG_FOLDERS, f"no config {config}"
    for path in (w for w in words if w.startswith("configs/")):
        assert (REPO / path).is_file(), path
    return verb, args
