"""Every command: help without torch, help text of every option, consistent names, old spellings, near names."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import pytest

from smartclip_det.cli import dispatch
from smartclip_det.cli.options import Old, renewed
from smartclip_det.core.errors import UserError
from tests.conftest import REPO

VERBS = list(dispatch.VERBS)


def ends(capsys, *argv):
    with pytest.raises(SystemExit) as left:
        dispatch.main(argv)
    told = capsys.readouterr()
    return left.value.code, told.out, told.err


def options(verb):
    return {o: a for a in dispatch.parser_of(verb)._actions for o in a.option_strings}


HELP_OF_ALL = """
import contextlib, io, sys
from smartclip_det.cli import dispatch
for verb in dispatch.VERBS:
    with contextlib.redirect_stdout(io.StringIO()) as told:
        try:
            dispatch.parser_of(verb).parse_args(["--help"])
        except SystemExit:
            pass
    assert f"smartclip-det {verb}" in told.getvalue().split("options:")[0].split("]", 1)[1], verb
heavy = {"torch", "numpy", "mmengine", "mmdet", "PIL"} & set(sys.modules)
assert not heavy, heavy
"""


def test_help_of_every_verb_has_an_example_and_imports_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", HELP_OF_ALL], capture_output=True, text=True, cwd=REPO, check=False)
    assert done.returncode == 0, done.stderr


def test_help_takes_a_blink():
    command = [sys.executable, "-c", "from smartclip_det.cli import main; main(['train', '--help'])"]
    before = os.times().children_user
    subprocess.run(command, capture_output=True, cwd=REPO, check=True)
    assert os.times().children_user - before < 0.3


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_tells_what_it_does(verb):
    for action in dispatch.parser_of(verb)._actions:
        assert action.help, f"{verb}: {action.option_strings or action.dest}"


@pytest.mark.parametrize("verb", VERBS)
def test_one_word_for_one_thing(verb):
    found = options(verb)
    gone = {
        "--text",
        "--out-dir",
        "--score-threshold",
        "--score-thr",
        "--detector-checkpoint",
        "--class-names",
        "--output",
    }
    assert not gone & set(found)
    if "--device" in found:
        assert found["--device"].default == "auto"
    for word, said in (("--encoder", "towers"), ("--checkpoint", "weights"), ("--vocabulary", "name")):
        if word in found:
            assert said in found[word].help, f"{verb} {word}: {found[word].help}"
    module = dispatch.module_of(verb)
    for old in getattr(module, "OLD", ()):
        assert old.new in found, f"{verb}: {old} leads nowhere"
        assert old.unless or old.old not in found, f"{verb}: {old} is an option of today"


def test_old_spellings_are_renewed_and_told(capsys):
    spellings = (Old("--checkpoint", "--encoder", unless=("--encoder",)), Old("--detector", "--checkpoint"))
    assert renewed(["--checkpoint", "a", "--detector=b"], spellings) == ["--encoder", "a", "--checkpoint=b"]
    assert capsys.readouterr().err.count("note: ") == 2
    assert renewed(["--encoder", "a", "--checkpoint", "b"], spellings) == ["--encoder", "a", "--checkpoint", "b"]
    assert renewed(["--checkpoints", "a"], spellings) == ["--checkpoints", "a"]
    assert capsys.readouterr().err == ""


def test_unknown_words_are_answered_with_near_ones(capsys):
    code, _, err = ends(capsys, "retreive")
    assert (code, "retrieve" in err) == (2, True)
    code, _, err = ends(capsys, "make-toi")
    assert (code, "data make-toy" in err) == (2, True)
    code, _, err = ends(capsys, "data", "make-toi")
    assert (code, "Nearest: make-toy" in err) == (2, True)
    code, _, err = ends(capsys, "rescore", "--ann", "a", "--images", "b", "--arch", "c", "--out-fle", "d")
    assert (code, "nearest --out" in err) == (2, True)
    code, _, err = ends(capsys, "rescore", "--views", "densse")
    assert (code, "nearest: dense" in err) == (2, True)
    code, _, err = ends(capsys, "encode-texts", "--device", "gpu")
    assert (code, "cuda:N" in err) == (2, True)
    code, _, err = ends(capsys, "train", "c.py", "--cfg-options", "a=[1")
    assert (code, "not closed" in err) == (2, True)


def test_overviews(capsys):
    code, out, _ = ends(capsys, "--help")
    assert code == 0
    assert all(v in out for v in VERBS)
    code, out, _ = ends(capsys, "data")
    assert code == 0
    assert "data make-toy" in out
    assert "train" not in out.split("\n", 2)[2].split("shows options")[0].replace("training", "")
    code, out, _ = ends(capsys, "--version")
    assert out.startswith("smartclip_det ")
    assert ends(capsys)[0] == 2


def test_a_verb_of_before_is_told(capsys):
    assert dispatch.find_verb(["retrieval", "urban1k"]) == ("retrieve", ["urban1k"])
    assert dispatch.find_verb(["study", "folders", "c.py"]) == ("study multi-dataset", ["c.py"])
    assert "now retrieve" in capsys.readouterr().err
    with pytest.raises(UserError, match="not a verb"):
        dispatch.find_verb(["xyzzy"])


def test_words_are_those_of_the_tables():
    from smartclip_det.core import words
    from smartclip_det.formats.caption_sets import PROTOCOLS as CAPTIONS
    from smartclip_det.formats.expressions.counts import FULL_SETS
    from smartclip_det.protocols.options import OF_DETECTIONS
    from smartclip_det.protocols.registry import OF_DETECTIONS as OURS

    assert tuple(OURS) == OF_DETECTIONS
    assert tuple(CAPTIONS) == words.CAPTION_SETS
    assert tuple(FULL_SETS) == words.EXPRESSION_SETS


def test_the_toy_world_is_drawn_as_configured():
    from smartclip_det.datasets.toy_world import WorldConfig

    parser = argparse.ArgumentParser()
    dispatch.module_of("data make-toy").add_options(parser)
    given = vars(parser.parse_args(["--out", "x"]))
    default = WorldConfig()
    assert {k: getattr(default, k) for k in given if k != "out"} == {k: v for k, v in given.items() if k != "out"}


@pytest.mark.parametrize("tool", sorted((REPO / "tools").rglob("*.py")), ids=lambda p: p.name)
def test_tools_are_thin(tool):
    text = tool.read_text(encoding="utf-8")
    assert "run_verb(" in text
    assert len(text.splitlines()) < 14
