"""Options of verbs reach the option objects of the Python API, each in its field; ``--help`` groups them."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import pytest

from smartclip_det.apis.grounding_options import ExpressionOptions, GroundOptions, ProposalOptions
from smartclip_det.apis.predictor_options import PredictorOptions
from smartclip_det.apis.region_encoding import RegionEncoding
from smartclip_det.apis.rescoring import InputBoxes, RescoreFileOptions
from smartclip_det.cli import dispatch
from smartclip_det.cli.options import add_encoder, add_names, check_names, encoder_source, names_of
from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy

#: Verb, module and function of its API call, required arguments.
GROUND = ("ground", "apis.grounding", "ground_expressions", "refs.jsonl --images I --encoder W")
RESCORE = ("rescore", "apis.rescoring", "rescore_file", "--ann A --images I --encoder W")
GROUPED = [
    GROUND,
    RESCORE,
    ("probe", "apis.probing", "probe", "--ann A --images I --encoder W"),
    ("demo", "apis.demo", "demo", ". --texts a"),
    ("label", "apis.labelling", "label_folder", ". --texts a"),
    ("calibrate", "apis.calibration", "calibrate", "--ann A --images I"),
    ("app", "apis.app.page", "serve", ""),
]
CALLS = [
    *GROUPED,
    ("classify", "apis.classification", "classify", "F --encoder W"),
    ("retrieve", "apis.retrieval", "retrieve", "urban1k --data D --encoder W"),
    ("check checkpoint", "apis.checking", "verify_checkpoint", "clip-b16 W coco-5k=D"),
    ("models", "apis.weights", "verify_weights", "clip-b16 --verify coco-5k=D"),
    ("study presence", "studies.presence", "measure_presence", "--ann A --images I --encoder W"),
    ("study masks", "studies.masks", "analyse_masks", "--texts a --encoder W"),
]
#: Read with --arch or --open-clip only (see test_each_way_to_name_an_encoder), or after the call.
READ_ELSEWHERE = {"arch", "open_clip", "weights", "tokenizer", "image_size", "all", "json"}


class CalledError(Exception):
    """Ends a verb where it calls the Python API."""


class Recorded(argparse.Namespace):
    """A namespace that records which attributes are read."""

    def __getattribute__(self, name):
        if not name.startswith("_"):
            object.__getattribute__(self, "__dict__").setdefault("_read", set()).add(name)
        return object.__getattribute__(self, name)


def called_with(monkeypatch, call, argv=""):
    """Run a verb up to its API call: the arguments of the call, the names of options, and those that were read."""
    verb, module, function, needed = call
    found = []

    def stop(*args, **options):
        found.extend([*args, options])
        raise CalledError

    monkeypatch.setattr(import_module(f"smartclip_det.{module}"), function, stop)
    # label and calibrate load their predictor before the call.
    monkeypatch.setattr("smartclip_det.apis.predictor_options.load_predictor", lambda options: options)
    parser = dispatch.parser_of(verb)
    args = parser.parse_args([*needed.split(), *argv.split()], Recorded())
    args.__dict__["_read"] = set()
    with pytest.raises(CalledError):
        dispatch.module_of(verb).run(args)
    names = {a.dest for a in parser._actions if a.dest != "help"}
    return found, names, args._read


@pytest.mark.parametrize("call", CALLS, ids=lambda c: c[0])
def test_no_option_is_dropped_on_the_way_to_the_api(monkeypatch, call):
    _, names, read = called_with(monkeypatch, call)
    assert names - read - READ_ELSEWHERE == set()


@pytest.mark.parametrize(
    ("argv", "want"),
    [
        ("--encoder W", {"checkpoint": "W"}),
        ("--arch B", {"arch": "B"}),
        (
            "--open-clip M --weights W --tokenizer T --image-size 9",
            {"open_clip": "M", "checkpoint": "W", "tokenizer": "T", "image_size": 9},
        ),
    ],
)
def test_each_way_to_name_an_encoder(argv, want):
    parser = argparse.ArgumentParser()
    add_encoder(parser.add_argument_group("encoder"), open_clip=True)
    assert encoder_source(parser.parse_args(argv.split())) == want


@pytest.mark.parametrize("call", [GROUND, RESCORE], ids=lambda c: c[0])
def test_defaults_of_the_command_line_are_those_of_the_api(monkeypatch, call):
    (options, _), _, _ = called_with(monkeypatch, call)
    towers = RegionEncoding([{"checkpoint": "W"}])
    if call is GROUND:
        given = GroundOptions(ExpressionOptions("refs.jsonl", Path("I")), towers, out=Path("work_dirs/ground.jsonl"))
        assert asdict(options) == listed(given)
    else:
        given = RescoreFileOptions(Path("A"), Path("I"), towers)
        # The command line calibrates for CLIP's published scale, against a zero logit, and drops the lowest scores.
        policy = ScoringPolicy(background="zero", dense_temperature=100.0)
        want = {**listed(given), "policy": asdict(policy)}
        want["scores"]["score_threshold"] = 0.001
        assert asdict(options) == want


def listed(options):
    """Fields of an options object; argparse gives lists where the defaults are tuples."""
    out = asdict(options)
    out["encoder"]["views"] = list(out["encoder"]["views"])
    if "mask_modes" in out:
        out["mask_modes"] = list(out["mask_modes"])
    return out


def test_each_option_of_ground_is_in_its_field(monkeypatch):
    argv = (
        "--split val --answers all --limit 3 --encoder V W --device cpu --views crop mask --dense-mode vanilla "
        "--dense-size 64 --crop-context 1.5 --cache C --proposals detector --instances N --config c.py "
        "--checkpoint c.pth --cfg-options a.b=1 --max-proposals 4 --reading both --parser rules --control "
        "text_shuffled --subtract s.json --subtract-count 5 --seed 6 --mask-modes soft off --temperature 7 --margin "
        "--presence 0.8 --presence-source cells --presence-scale 9 --presence-bias -1 --nms 0.3 --out o.jsonl"
    )
    (options, _), _, _ = called_with(monkeypatch, GROUND, argv)
    policy = {"presence": 0.8, "presence_source": "cells", "presence_scale": 9.0, "presence_bias": -1.0}
    assert asdict(options) == {
        "expressions": {"ann": "refs.jsonl", "images": Path("I"), "split": "val", "answers": "all", "limit": 3},
        "encoder": {
            "towers": [{"checkpoint": "V"}, {"checkpoint": "W"}],
            "device": "cpu",
            "views": ["crop", "mask"],
            "dense_mode": "vanilla",
            "dense_size": 64,
            "crop_context": 1.5,
            "cache": Path("C"),
        },
        "proposals": {
            "source": "detector",
            "instances": "N",
            "config": "c.py",
            "checkpoint": "c.pth",
            "cfg_options": {"a.b": 1},
            "limit": 4,
            "detector_weight": 0.0,
        },
        "reading": {
            "reading": "both",
            "parser": "rules",
            "control": "text_shuffled",
            "subtract": "s.json",
            "subtract_count": 5,
            "seed": 6,
        },
        "mask_modes": ["soft", "off"],
        "policy": {**asdict(ScoringPolicy()), "temperature": 7.0, **policy},
        "margin": True,
        "nms": 0.3,
        "out": Path("o.jsonl"),
    }
    (options, _), _, _ = called_with(monkeypatch, GROUND, "--detector-weight 0.5")
    assert options.proposals == ProposalOptions(detector_weight=0.5)


def test_each_option_of_rescore_is_in_its_field(monkeypatch):
    argv = (
        "--protocol ov-coco --split-file s.json --device cpu --views crop --dense-mode vanilla --dense-size 64 "
        "--boxes b.json --keep-classes --proposal-nms 0.6 --max-proposals 4 --vocabulary v.txt --templates a{} b{} "
        "--mask-mode soft --activation sigmoid --background text --temperature 7 --presence 0.8 --presence-source "
        "cells --presence-scale 9 --presence-bias -1 --objectness-power 0.1 --own-power 0.2 --threshold 0.3 "
        "--nms-iou 0.4 --max-detections 5 --out o.json"
    )
    (options, _), _, _ = called_with(monkeypatch, RESCORE, argv)
    want = {
        "ann": Path("A"),
        "images": Path("I"),
        "encoder": asdict(RegionEncoding([{"checkpoint": "W"}], "cpu", ["crop"], "vanilla", 64)),
        "boxes": {"source": "b.json", "keep_classes": True, "nms_iou": 0.6, "limit": 4},
        "vocabulary": "v.txt",
        "templates": ["a{}", "b{}"],
        "protocol": "ov-coco",
        "split_file": "s.json",
        "policy": {
            **asdict(ScoringPolicy()),
            "mask_mode": "soft",
            "activation": "sigmoid",
            "background": "text",
            "sigmoid_reference": "background",
            "dense_temperature": 7.0,
            "presence": 0.8,
            "presence_source": "cells",
            "presence_scale": 9.0,
            "presence_bias": -1.0,
        },
        "scores": {
            "objectness_power": 0.1,
            "own_power": 0.2,
            "score_threshold": 0.3,
            "nms_iou": 0.4,
            "max_detections": 5,
        },
        "out": Path("o.json"),
    }
    assert asdict(options) == want


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExpressionOptions("a", "i", answers="both"), "answers"),
        (lambda: ProposalOptions("rpn", config="c.py"), "--proposals rpn needs --config and --checkpoint"),
        (lambda: RegionEncoding("w.pt"), "list of encoder configs"),
        (lambda: RegionEncoding(["w.pt"]), "list of encoder configs"),
        (lambda: RegionEncoding([]), "at least one"),
        (lambda: InputBoxes(keep_classes=True), "its true class"),
        (lambda: RescoreFileOptions("a", "i", RegionEncoding([{}, {}])), "one encoder; got 2"),
        (
            lambda: GroundOptions(
                ExpressionOptions("a", "i", answers="all"), RegionEncoding([{}]), ProposalOptions(detector_weight=1.0)
            ),
            "detector weight",
        ),
        (
            lambda: GroundOptions(
                ExpressionOptions("a", "i"), RegionEncoding([{}]), policy=ScoringPolicy(presence=1.0)
            ),
            "requires --answers all",
        ),
    ],
)
def test_options_that_conflict_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("call", GROUPED, ids=lambda c: c[0])
def test_help_shows_every_option_in_a_named_group(call):
    parser = dispatch.parser_of(call[0])
    loose = [a.dest for g in parser._action_groups[:2] for a in g._group_actions]
    assert loose == ["help"]
    assert all(g.title for g in parser._action_groups)


def test_label_takes_its_predictor_and_tiles_from_the_options(monkeypatch):
    call = next(c for c in CALLS if c[0] == "label")
    argv = "--vocabulary coco_80 --config c --checkpoint w --encoder e --boxes b --device cpu --cfg-options a=1 --tile 64 8"
    (options, predictor, _), _, _ = called_with(monkeypatch, call, argv)
    assert predictor == PredictorOptions("c", "w", "e", "b", "cpu", {"a": 1})
    assert (options.tile, options.names[:2], len(options.names)) == ((64, 8), ["a", "person"], 81)


def test_texts_may_be_given_in_several_options_and_must_be_given():
    parser = argparse.ArgumentParser()
    add_names(parser, "phrases")
    assert names_of(parser.parse_args(["--texts", "a", "b", "--texts", "c"])) == ["a", "b", "c"]
    with pytest.raises(UserError, match="No phrases given: use --texts"):
        check_names(parser.parse_args([]), "phrases")
