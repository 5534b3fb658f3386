"""What the README files say can be done: python blocks run, shell blocks are taken word by word, links exist."""

from __future__ import annotations

import configparser
import functools
import json
import re
import shutil
import subprocess
import sys

import pytest

from smartclip_det.cli.dispatch import find_verb, parser_of
from smartclip_det.engine.config import load_config
from tests.conftest import REPO

PAGES = [
    REPO / "README.md",
    REPO / "data/README.md",
    REPO / "docs/own-photographs.md",
    *sorted((REPO / "configs").rglob("README.md")),
]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_python_blocks_run(page):
    for block in blocks(page, "python"):
        if (
            "from_pretrained(" in block
        ):  # Weights by name: run against a hub of random ones in tests/models/test_zoo.py.
            continue
        done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, cwd=REPO, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


#: Blocks are read by bash, whose loops, quotes and comments are real. Nothing that they name is started: no program is
#: on the path, so each word falls to the handler, and a restricted shell takes no path of a program and writes no file.
TOLD = r"""
command_not_found_handle() { printf '%s\0' "$@"; printf '\n'; }
function .venv/bin/python { command_not_found_handle .venv/bin/python "$@"; }
"""
#: Numbers that the reader puts in.
PLACEHOLDERS = {"T": "0.5"}


def words_of_commands(block, folder):
    """The words of every command that a block would start, from within ``folder``."""
    nowhere = folder / "empty"
    nowhere.mkdir(exist_ok=True)
    done = subprocess.run(
        [shutil.which("bash"), "--restricted", "--norc", "--noprofile", "-euc", TOLD + block],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
        env={"PATH": str(nowhere)},
    )
    assert (done.returncode, done.stderr) == (0, ""), f"{block}\n{done.stderr}"
    return [[PLACEHOLDERS.get(w, w) for w in line.split("\0")[:-1]] for line in done.stdout.splitlines()]


def calls(page, folder):
    """Every command that the shell blocks of a page start, as its words."""
    return [words for block in blocks(page, "bash") for words in words_of_commands(block, folder)]


def test_blocks_are_read_and_start_nothing(tmp_path):
    block = 'for N in 1 2; do pip install "a b" $N; done  # twice\ntouch made\n'
    assert words_of_commands(block, tmp_path) == [["pip", "install", "a b", n] for n in "12"] + [["touch", "made"]]
    for line in (
        "/bin/touch made",
        "echo a > made",
        "PATH=/bin touch made",
        "exec touch made",
        "command -p touch made",
    ):
        with pytest.raises(AssertionError, match="restricted|readonly"):
            words_of_commands(line, tmp_path)
    assert not (tmp_path / "made").exists()


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
def test_shell_blocks_are_taken_by_bash_and_by_the_verbs(page, tmp_path, capsys):
    for call in calls(page, tmp_path):
        words = words_of_verb(call)
        if words is None:
            assert call[0] in ("make", "ls", "pip") or call[1:] == ["-m", "smartclip_det.utils.env"], call
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


def test_the_check_of_an_installation_runs():
    done = subprocess.run(
        [sys.executable, "-m", "smartclip_det.utils.env"], capture_output=True, text=True, cwd=REPO, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_make_targets_and_extras_of_the_readme_exist(tmp_path):
    makefile = (REPO / "Makefile").read_text(encoding="utf-8")
    setup = configparser.ConfigParser()
    setup.read(REPO / "setup.cfg", encoding="utf-8")
    for program, *rest in calls(REPO / "README.md", tmp_path):
        if program == "make":
            assert re.search(rf"^{re.escape(rest[0])}:", makefile, flags=re.M), rest
        for extra in re.findall(r"\[([a-z, -]+)\]", " ".join(rest)) if program == "pip" else []:
            assert set(extra.replace(" ", "").split(",")) <= set(setup["options.extras_require"]), rest


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
