"""Documentation pages are executable: Python blocks run or type-check, shell blocks parse, links resolve.

Python blocks of README files run, except those with weights by name. Python blocks of docs/ are checked by
:mod:`tests.snippets` without running them.
"""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys

import pytest

from smartclip_det.cli.dispatch import find_verb, parser_of
from smartclip_det.utils.config_files import config_names
from tests import snippets
from tests.conftest import REPO
from tests.documented import DOCS, PAGES, PROGRAMS, READMES, blocks, calls, parse, words_of_commands, words_of_verb


@pytest.mark.parametrize("page", DOCS, ids=lambda p: str(p.relative_to(REPO)))
def test_python_blocks_of_the_site_fit_the_code(page):
    for block in blocks(page, "python"):
        snippets.check(block)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("from smartclip_det import Predicter", "Predicter"),
        ("import smartclip_det.nothing", "nothing"),
        ("predictor.detect(['a'])", "predictor is not bound"),
        ("from smartclip_det import Predictor\nPredictor.from_pretraind('a')", "from_pretraind"),
        (
            "from smartclip_det import Predictor\np = Predictor.from_pretrained('a', sources='b')\np.detct(['a'])",
            "detct",
        ),
        ("from smartclip_det import Predictor\np = Predictor.from_config('a')\np.detect(['a'], thresh=1)", "thresh"),
        (
            "from smartclip_det import Predictor\np = Predictor.from_config('a')\n"
            "for f in p.detect_images('a', ['b']):\n    f.above(0.5).plotted()",
            "plotted",
        ),
        ("from smartclip_det import masked_cosine\nmasked_cosine(1)", "text_embeds"),
        ("def f(a):\n    return b", "b is not bound"),
        ("a = (", "never closed"),
    ],
)
def test_a_wrong_line_of_a_python_block_is_seen(line, message):
    with pytest.raises((snippets.SnippetError, SyntaxError), match=message):
        snippets.check(line)


@pytest.mark.parametrize("page", READMES, ids=lambda p: str(p.relative_to(REPO)))
def test_python_blocks_run(page):
    for block in blocks(page, "python"):
        if (
            "from_pretrained(" in block
        ):  # Weights by name: run against a hub of random ones in tests/models/test_zoo.py.
            continue
        done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, cwd=REPO, check=False)
        assert done.returncode == 0, done.stderr


def test_labels_are_split_as_the_page_shows(tmp_path, monkeypatch):
    block = next(b for b in blocks(REPO / "docs/own-photographs.md", "python") if "corrected.json" in b)
    images = [{"id": n} for n in range(10)]
    data = {"categories": [{"id": 1}], "images": images, "annotations": [{"image_id": n % 10} for n in range(25)]}
    (tmp_path / "corrected.json").write_text(json.dumps(data))
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    train, val = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("train", "val"))
    assert sorted(i["id"] for part in (train, val) for i in part["images"]) == list(range(10))
    assert len(train["annotations"]) + len(val["annotations"]) == 25
    for part in (train, val):
        assert part["categories"] == data["categories"]
        assert {a["image_id"] for a in part["annotations"]} == {i["id"] for i in part["images"]}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


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


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_shell_blocks_are_taken_by_bash_and_by_the_verbs(page, tmp_path):
    for call in calls(page, tmp_path):
        words = words_of_verb(call)
        if words is None:
            example = call[0] == "python" and call[1].startswith("docs/examples/") and (REPO / call[1]).is_file()
            assert example or call[0] in PROGRAMS or call[1:] == ["-m", "smartclip_det.utils.env"], call
        else:
            parse(words)


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


def test_the_zoo_states_of_every_config_what_holds_and_a_command_that_is_read():
    code = (
        "import sys, json; sys.path.insert(0, 'docs'); import zoo; print(json.dumps([zoo.collections(), zoo.STATUSES]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=True)
    collections, statuses = json.loads(done.stdout)
    assert collections
    for collection, models in collections:
        assert (REPO / collection["README"]).is_file()
        for model in models:
            assert model["Status"] in statuses, model["Name"]
            verb, rest = find_verb(model["Command"].split()[1:])
            args = parser_of(verb).parse_args(rest)
            assert args.config in config_names(), model["Name"]
            assert f"configs/{args.config}.py" == model["Config"]
