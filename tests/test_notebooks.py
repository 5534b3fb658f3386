"""Notebooks: both files contain the same cells, outputs are small and machine-independent, toy runs are looked for.

`make notebooks` executes them.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re

import pytest

from smartclip_det.apis.toy_run import VARIABLE, WEIGHTS, find_toy_run
from smartclip_det.core.errors import UserError
from tests.conftest import REPO

FOLDER = REPO / "docs/notebooks"
NOTEBOOKS = sorted(p for p in FOLDER.glob("*.py") if p.name != "make.py")
BYTES = 300_000
#: Local paths that must not occur in outputs.
MACHINE = re.compile(r"/(home|root|tmp|work|Users|mnt|usr)/")


@pytest.fixture(scope="module")
def make():
    pytest.importorskip("jupytext", reason="notebooks need the extra docs")
    spec = importlib.util.spec_from_file_location("make_notebooks", FOLDER / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda p: p.stem)
def test_both_forms_hold_the_same_cells(make, source):
    assert make.in_sync(source), "run `python docs/notebooks/make.py --write`"


def test_a_changed_cell_and_a_missing_pair_are_seen(make, tmp_path):
    source = tmp_path / "one.py"
    source.write_text("# %% [markdown]\n# # One\n\n# %%\nprint(1)\n")
    assert not make.in_sync(source)
    make.write(make.jupytext.read(source), source.with_suffix(".ipynb"))
    assert make.in_sync(source)
    source.write_text(source.read_text().replace("print(1)", "print(2)"))
    assert not make.in_sync(source)


def test_logs_and_second_forms_of_pictures_are_not_kept(make):
    log = make.nbformat.v4.new_output(
        "stream", text="11/26 04:39:47 - mmengine - INFO - a\nseen\nLoads checkpoint by local backend from path: /a\n"
    )
    assert make.small(log).text == "seen\n"


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_there_small_and_of_no_machine(source):
    text = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert len(text) < BYTES, f"{source.stem} has {len(text)} bytes"
    shown = []
    for cell in json.loads(text)["cells"]:
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error", output
            data = {k: v for k, v in output.get("data", {}).items() if k != "image/png"}
            shown.append(json.dumps([output.get("text", ""), data]))
    assert len(shown) > 5
    assert not [s for s in shown if MACHINE.search(s)]


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_says_first_what_is_learned_and_uses_public_names(source):
    text = source.read_text(encoding="utf-8")
    assert re.match(r"# %% \[markdown\]\n# # [A-Z].+\n#\n# What you will learn:\n", text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_"), f"{node.attr} is private"
        if isinstance(node, ast.ImportFrom):
            assert not any(part.startswith("_") for part in f"{node.module}".split("."))
            assert not any(a.name.startswith("_") for a in node.names)


def test_every_notebook_is_in_the_site():
    pages = re.findall(r"- notebooks/(.+)\.md", (REPO / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(pages) == [p.stem for p in NOTEBOOKS]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that writes a toy run into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)

    def write(folder, data, quick=False, weights=WEIGHTS):
        checkpoints = tmp_path / folder / "checkpoints"
        checkpoints.mkdir(parents=True)
        for name in weights:
            (checkpoints / f"{name}.pth").touch()
        (tmp_path / data).mkdir(parents=True, exist_ok=True)
        (tmp_path / data / "world.json").write_text("{}")
        facts = {"data": str(data), "quick": quick}
        (tmp_path / folder / "facts.json").write_text(json.dumps(facts))

    return write


def test_a_run_is_found_from_folders_below_it_and_a_full_one_first(run, tmp_path, monkeypatch):
    run("work_dirs/toy_quick", "data/toy_quick", quick=True)
    below = tmp_path / "docs/notebooks"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    found = find_toy_run()
    assert found.quick
    assert (found.data / "world.json").is_file()
    assert not found.data.is_absolute()
    assert found.checkpoint("clip") == "../../work_dirs/toy_quick/checkpoints/clip.pth"
    run("work_dirs/toy", "data/toy")
    assert not find_toy_run().quick


def test_a_run_elsewhere_is_found_by_argument_and_variable(run, tmp_path, monkeypatch):
    run("a/b", tmp_path / "scenes", quick=True)
    run("work_dirs/toy", "data/toy")
    assert find_toy_run("a/b").data == tmp_path / "scenes"
    monkeypatch.setenv(VARIABLE, "a/b")
    assert find_toy_run().quick


def test_what_is_missing_is_named_with_the_command_that_makes_it(run, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"work_dirs/toy or .*make toy QUICK=1"):
        find_toy_run()
    monkeypatch.setenv(VARIABLE, "nowhere")
    with pytest.raises(UserError, match="in nowhere"):
        find_toy_run()
    run("work_dirs/toy", "data/toy", weights=["clip"])
    found = find_toy_run("work_dirs/toy")
    with pytest.raises(UserError, match=r"detector\.pth.*not finished"):
        found.checkpoint("detector")
    with pytest.raises(UserError, match="smartclip"):
        found.checkpoint("smartclp")
    (tmp_path / "data/toy/world.json").unlink()
    with pytest.raises(UserError, match="no longer in .*data/toy"):
        find_toy_run("work_dirs/toy")
    (tmp_path / "work_dirs/toy/facts.json").write_text("[]")
    with pytest.raises(UserError, match="does not record"):
        find_toy_run("work_dirs/toy")
