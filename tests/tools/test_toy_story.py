"""The toy run: its commands, the report's conclusions from numbers, and the page as a whole."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.runner import Runner
from PIL import Image

from smartclip_det.apis import running
from smartclip_det.cli import dispatch
from smartclip_det.core.errors import UserError
from smartclip_det.engine.config import load_config
from smartclip_det.metrics.query_precision import mean_known, query_precisions
from smartclip_det.studies import toy_conclusions as conclusions
from smartclip_det.studies.grid import VARIANTS, GridOptions, Seed
from smartclip_det.studies.grid_table import difference, markdown, spread
from smartclip_det.studies.toy import DEFAULT, QUICK, Story, keep_weights
from smartclip_det.studies.toy_measures import Gap, mean_precision
from smartclip_det.studies.toy_pictures import RIGHT, WRONG, draw_marks, match_and_mark
from smartclip_det.studies.toy_steps import DETECTOR, HEAD
from tests.conftest import REPO
from tests.tools.toy_run import write_run

#: Keys that classes accept and configs leave at their default.
UNSAID = ("metrics_file", "indices", "control", "seed", "mask_mode")


@cache
def plain_config(name):
    return load_config(name, {})


def has(config, key):
    for part in key.split("."):
        if isinstance(config, list | tuple):
            config = config[int(part)]
        elif part in config:
            config = config[part]
        else:
            return False
    return True


def check_step(step):
    """The command accepts the options, and every override except output files is a key of the config."""
    verb, rest = dispatch.find_verb(step.command[2:])
    args = dispatch.parser_of(verb).parse_args(rest)
    config = getattr(args, "config", None)
    for key in (getattr(args, "cfg_options", None) or {}) if config else {}:
        assert not any(part.isdigit() for part in key.split(".")), f"{step.name}: {key} depends on a position"
        new = key.startswith("model.policy.") or key.rpartition(".")[2] in UNSAID
        assert new or has(plain_config(config), key), (step.name, key)
    return args


@pytest.mark.parametrize("size", [DEFAULT, QUICK], ids=["default", "quick"])
def test_each_step_of_the_story_is_a_command_that_can_run(tmp_path, size):
    written: set = set()
    for stage in Story(tmp_path, tmp_path / "world", 3, size, 3).stages():
        for step in stage:
            args = check_step(step)
            given = [getattr(args, k, None) for k in ("encoder", "checkpoint")]
            given += [(getattr(args, "cfg_options", None) or {}).get("towers.checkpoint")]
            for path in given:
                for one in path if isinstance(path, list) else [path]:
                    assert one is None or str(one) in written, (step.name, one)
        written |= {str(p) for step in stage for p in step.outputs}


def test_runs_of_other_seeds_can_share_a_world(tmp_path):
    worlds, alignments, *_ = Story(tmp_path, tmp_path / "world", 3, DEFAULT, 0).stages()
    assert check_step(worlds[0]).seed == 0
    assert {check_step(s).cfg_options["randomness.seed"] for s in alignments} == {3}


def test_the_story_and_the_grid_build_equal_steps_alike(tmp_path):
    """What both train, in one folder on one world with one seed, is one command."""
    story = Story(tmp_path / "seed_3", tmp_path / "world", 3, DEFAULT, 3)
    grid = Seed(GridOptions(out=tmp_path, data=tmp_path / "world", heads=["smartclip_hard"]), 3)
    mine, theirs = ({s.name: s for stage in run.stages() for s in stage} for run in (story, grid))
    for name in ("clip", "smartclip"):
        assert mine[name] == theirs[name]
    args = {n: check_step(s) for n, s in mine.items()}
    assert {n for n, a in args.items() if getattr(a, "control", "none") != "none"} == {
        "detection_text_shuffled",
        "grounding_text_shuffled",
    }
    assert args["detector"].cfg_options["train_dataloader.dataset.indices"] == 10000
    for heads in ("detector", "detector_random", "referring"):
        options = args[heads].cfg_options
        # No validation at the end: the tests follow as steps of their own.
        assert options["train_cfg.val_begin"] > options["train_cfg.max_epochs"]
    assert args["detector"].cfg_options["towers.checkpoint"] == args["detection_hard"].cfg_options["towers.checkpoint"]
    assert "towers.checkpoint" not in args["detector_random"].cfg_options
    assert "towers.checkpoint" not in args["detection_random_tower"].cfg_options
    assert {check_step(s).text_norm for n, s in theirs.items() if n == "probe_two_stage_clip"} == {"full"}


@pytest.mark.parametrize("name", ["clip-pretrain", "smartclip-align_two-stage", "referring", "open-vocab-rcnn"])
def test_the_schedule_ends_with_a_training_of_any_length(tmp_path, name):
    [path] = [
        p for p in (REPO / "configs/toy").glob(f"{name}*.py") if p.stem.startswith((f"{name}_toy", f"{name}_smart"))
    ]
    config = load_config(path, {"train_cfg.max_epochs": 3})
    runner = Runner(
        torch.nn.Linear(1, 1),
        str(tmp_path),
        train_dataloader=torch.utils.data.DataLoader(range(50)),
        train_cfg={"by_epoch": True, "max_epochs": config.train_cfg.max_epochs},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 1.0}},
        param_scheduler=config.param_scheduler,
        experiment_name=f"schedule_{name}",
    )
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.optim_wrapper = wrapper
    *_, cosine = runner.build_param_scheduler(runner.param_schedulers)
    assert (cosine.begin, cosine.end, cosine.T_max, cosine.by_epoch) == (0, 150, 150, False)


def test_the_control_of_a_test_reaches_the_vocabulary(monkeypatch, tmp_path):
    class BuiltError(Exception):
        """Carries the config that a runner would be built from."""

    def build(config):
        raise BuiltError(config)

    monkeypatch.setattr(running.Runner, "from_cfg", build)
    (tmp_path / "a.pth").write_bytes(b"weights")
    for control in ("none", "text_shuffled"):
        options = running.TestOptions(DETECTOR, str(tmp_path), checkpoint=str(tmp_path / "a.pth"), control=control)
        with pytest.raises(BuiltError) as caught:
            running.test(options)
        [hook] = [h for h in caught.value.args[0].custom_hooks if h.type == "VocabularyHook"]
        assert hook.get("control", "none") == control
    with pytest.raises(UserError, match="needs a detector"):
        running.test(replace(options, config=HEAD))


def test_both_alignments_of_the_story_differ_in_their_config_alone(tmp_path):
    stages = Story(tmp_path, tmp_path / "world", 3, QUICK, 3).stages()
    clip, smartclip = (next(s for stage in stages for s in stage if s.name == n) for n in ("clip", "smartclip"))
    renamed = [a.replace("smartclip-align", "clip-align").replace("/smartclip", "/clip") for a in smartclip.command]
    assert renamed == clip.command
    args = check_step(clip)
    assert args.cfg_options["train_cfg.max_steps"] == 100
    assert args.cfg_options["train_dataloader.dataset.scenes.ramp"] == 60 * 128
    assert args.cfg_options["param_scheduler.warmup"] == 8


@pytest.mark.parametrize("pretrained", [False, True])
def test_each_step_of_the_grid_is_a_command_that_can_run(tmp_path, pretrained):
    task = GridOptions(
        out=tmp_path, data=tmp_path / "world", policies=True, pretrained=tmp_path / "other" if pretrained else None
    )
    stages = Seed(task, 4).stages()
    names = [s.name for stage in stages for s in stage]
    assert len(names) == len(set(names))
    assert ("pretrain" in names) is not pretrained
    assert set(VARIANTS) < set(names)
    for stage in stages:
        for step in stage:
            check_step(step)
    alone = GridOptions(out=tmp_path, variants=["clip", "smartclip"], detector=0)
    assert [[s.name for s in stage] for stage in Seed(alone, 0).stages()] == [
        ["clip", "smartclip"],
        ["probe_clip", "probe_smartclip"],
    ]


def test_kept_weights_are_those_of_the_training_without_its_state(tmp_path):
    weights = {"a": torch.arange(4.0)}
    torch.save({"meta": {"epoch": 1}, "state_dict": weights, "optimizer": {"b": torch.zeros(1000)}}, tmp_path / "a.pth")
    keep_weights(tmp_path / "a.pth", tmp_path / "b.pth")
    found = torch.load(tmp_path / "b.pth", weights_only=True)
    assert set(found) == {"meta", "state_dict"}
    assert torch.equal(found["state_dict"]["a"], weights["a"])


def test_the_study_tells_means_spreads_and_differences_one_figure_a_cell():
    assert spread([1.0, 2.0, 3.0]) == {"mean": 2.0, "std": 1.0}
    assert spread([1.0]) == {"mean": 1.0, "std": None}
    # Student's t with two degrees of freedom: 4.3027 standard errors.
    found = difference([0.1, 0.2, 0.3])
    assert found["mean"] == pytest.approx(0.2)
    assert (found["low"], found["high"]) == pytest.approx(
        (0.2 - 4.3027 * 0.1 / 3**0.5, 0.2 + 4.3027 * 0.1 / 3**0.5), abs=1e-4
    )
    table = {"a": {"x": spread([0.5, 0.7])}, "b": {"y": spread([1.0])}}
    text = markdown(table, {"a minus b": {"x": found}}, [0, 1])
    cells = [c.strip() for line in text.splitlines() if line.startswith("| a") for c in line.split("|")]
    assert cells[2] == "0.600"
    assert "±" not in text
    assert "| x | +0.100 | +0.200 | +0.300 | +0.200 |" in text
    assert "| b | n/a |" in text


def presence_map(present, scores):
    return mean_known(query_precisions(present, scores))


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_weights_of_pictures_are_repeats_of_pictures(seed):
    rng = np.random.default_rng(seed)
    present, scores = rng.random((12, 3)) < 0.4, rng.random((12, 3))
    weights = rng.integers(0, 4, 12)
    metric = mean_precision(present, scores)
    if present.any():
        assert metric(np.ones(12))["map"] == pytest.approx(presence_map(present, scores))
    repeated = np.repeat(np.arange(12), weights)
    if present[repeated].any():
        assert metric(weights.astype(float))["map"] == pytest.approx(presence_map(present[repeated], scores[repeated]))


def test_a_gap_is_shown_when_its_interval_is_on_one_side():
    ahead, behind, level = Gap(0.1, 0.05, 0.15), Gap(-0.1, -0.15, -0.05), Gap(0.02, -0.01, 0.04)
    assert (ahead.above, ahead.below, behind.above, behind.below) == (True, False, False, True)
    assert not level.above
    assert not level.below
    assert conclusions.NOT_SHOWN not in conclusions.conclude("own mask", ahead, "shapes")
    unsure = Gap(0.2, -0.01, 0.4)
    for gap in (behind, level, unsure):
        assert conclusions.NOT_SHOWN in conclusions.conclude("own mask", gap, "shapes")
    assert "difference +0.020, interval -0.010 to +0.040" in conclusions.conclude("own mask", level, "shapes")
    assert "are worse" in conclusions.conclude("masks", ahead, "shapes")
    assert "masks hurt" in conclusions.conclude("masks", behind, "shapes")
    assert "equally good on shapes" in conclusions.conclude("masks", level, "shapes")
    assert "Inconclusive" in conclusions.conclude("masks", unsure, "shapes")
    assert "too few" in conclusions.conclude("own mask", unsure, "shapes")
    for gap, word in ((ahead, "better"), (behind, "worse"), (level, "equally good"), (unsure, "too few")):
        assert word in conclusions.conclude("clip", gap, "shapes")


def test_masks_that_pay_within_a_model_are_no_gain_over_clip():
    gaps = {f"colour_shape {m}": Gap(0.1, 0.05, 0.15) for m in ("off", "shuffled")}
    for clip, head in (
        (Gap(0.0, -0.02, 0.02), "does not show that it is better than CLIP"),
        (Gap(0.1, 0.05, 0.15), "Masks help"),
    ):
        assert head in conclusions.alignment({**gaps, "colour_shape clip": clip})[0]
    gaps["colour_shape off"] = Gap(0.0, -0.02, 0.02)
    assert (
        "does not show that masks help" in conclusions.alignment({**gaps, "colour_shape clip": Gap(0.1, 0.05, 0.15)})[0]
    )


def test_captions_are_told_with_both_models_where_they_were_measured():
    scores = {
        "smartclip": {"map_caption_full_hard": 0.14, "map_caption_full_off": 0.08, "map_caption_partial_hard": 0.64},
        "clip": {"map_caption_full_off": 0.31, "map_caption_partial_off": 0.63},
    }
    told = " ".join(conclusions.captions(scores))
    assert "0.14 (CLIP 0.31) on full captions" in told
    assert "0.64 (CLIP 0.63) on partial" in told
    del scores["clip"]["map_caption_full_off"]
    assert "full" not in " ".join(conclusions.captions(scores))
    assert conclusions.captions({"smartclip": {}, "clip": {}}) == []


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.01, 0.2, "is better (0.70"),
        (-0.2, -0.01, "is worse (0.70"),
        (-0.01, 0.01, "is not measurably different"),
        (-0.2, 0.2, "is not measurably different"),
    ],
)
def test_the_trained_head_is_compared_with_zero_shot_grounding(low, high, said):
    results = {"acc50": {"hard": 0.6, "text_shuffled": 0.2}, "chance": 0.3, "best_possible": 0.9}
    results["head"] = {"hard": {"acc50": 0.7}}
    gaps = dict.fromkeys(["grounding shuffled", "grounding off", "referring off"], Gap(0.1, 0.05, 0.15))
    parts = conclusions.grounding({"grounding": results}, {**gaps, "referring zero-shot": Gap(0.1, low, high)})
    assert said in parts[1]
    assert "matters for grounding" in parts[2]
    assert "worse on the trained head's grounding" in parts[4]


@pytest.mark.parametrize(
    ("novel", "exchanged", "said"),
    [
        (0.6, 0.01, "are detected:"),
        (0.4, 0.01, "partly detected"),
        (0.1, 0.001, "mostly missed"),
        (0.6, 0.1, "mostly learned from"),
        (0.6, 0.3, "does not show that it was learned from captions: with permuted names"),
    ],
)
def test_novel_shapes_are_found_by_the_rule(novel, exchanged, said):
    table = {"base_ap50": {"hard": 0.8}, "novel_ap50": {"hard": novel, "text_shuffled": exchanged, "random_tower": 0.0}}
    gaps = {"novel off": Gap(0, -1, 1), "novel shuffled": Gap(0, -1, 1)}
    assert said in " ".join(conclusions.detection({"detection": table}, gaps))


@pytest.mark.parametrize(
    ("shape", "colour", "neither", "said"),
    [
        (0.6, 0.5, 0.5, "its shape."),
        (0.6, 0.6, 0.5, "its shape and its colour."),
        (0.5, 0.6, 0.5, "its colour."),
        (0.85, 0.85, 0.84, "nearly identical"),
        (0.5, 0.5, 0.5, "hardly depend on shape or colour"),
    ],
)
def test_masks_follow_what_their_overlap_tells(shape, colour, neither, said):
    head, facts = conclusions.masks(conclusions.MaskFacts([0.2, 0.4], shape, colour, neither))
    assert said in head
    assert "30% of the dimensions on average, between 20% and 40%" in facts


def test_labels_do_not_hide_each_other():
    image, box = Image.new("RGB", (64, 64)), [10, 20, 50, 50]
    one = np.asarray(draw_marks(image, [(box, "star", RIGHT)]))
    two = np.asarray(draw_marks(image, [(box, "star", RIGHT), (box, "heart", WRONG)]))
    above = slice(20 * 10 - 44, 20 * 10 - 8)
    assert (one[above] == two[above]).all()
    assert (two[505:530] == WRONG).all(axis=-1).any()


def test_found_boxes_count_once_and_what_was_missed_is_told():
    one, two = [0, 0, 10, 10], [20, 20, 30, 30]
    marks, missed = match_and_mark([(one, "star"), (one, "star"), (two, "heart")], [(one, "star"), (two, "ring")])
    assert [colour for _, _, colour in marks] == [RIGHT, WRONG, WRONG]
    assert missed == [(two, "ring")]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    from smartclip_det.datasets.toy_world import ToyWorld, WorldConfig, write_world
    from smartclip_det.models.towers.smartclip import SmartCLIP
    from smartclip_det.studies.toy_report import report_toy

    root = tmp_path_factory.mktemp("story")
    write_world(ToyWorld(WorldConfig(train=2, val=24, test=1)), root / "world")
    towers = {}
    for name in ("clip", "smartclip"):
        arch = {"clip": "CLIP-toy", "smartclip": "SmartCLIP-toy"}[name]
        towers[name] = str(SmartCLIP.from_arch(arch, seed=0).save(root / f"{name}.safetensors"))
    write_run(root / "run", root / "world", towers, "")
    report_toy(root / "run")
    return root / "run"


def test_the_page_tells_every_section_and_needs_no_other_file(page):
    text = (page / "report.html").read_text(encoding="utf-8")
    assert [int(n) for n in re.findall(r"<h2>(\d+)\. ", text)] == list(range(1, 11))
    assert text.count('class="say"') == 6
    assert "<th>partial captions mAP</th>" in text
    assert "<th>full captions mAP</th>" not in text
    assert 'src="http' not in text
    # A control is explained before the first table that shows it.
    assert text.index("<dt>another text&#39;s mask") < text.index("<td>SmartCLIP, another text&#39;s mask")
    assert text.count("smartclip-det train configs/") == 2


def test_the_summary_tells_differences_of_the_files(page):
    summary = json.loads((page / "summary.json").read_text())
    gap = summary["gaps"]["grounding random"]
    # Predictions were generated correct for 0.9 and 0.4 of the sentences.
    assert gap["low"] < gap["value"] < gap["high"]
    assert gap["value"] == pytest.approx(0.5, abs=0.2)
    assert summary["gaps"]["novel shuffled"]["value"] > 0
    assert summary["grounding"]["head"]["hard"]["acc50"] == pytest.approx(0.9, abs=0.1)
    assert {"colour_shape off", "colour_shape clip"} < set(summary["gaps"])


def test_commands_for_ones_own_encoder_are_commands(page):
    from smartclip_det.studies.toy_pages import OWN_ENCODER

    for _, commands in OWN_ENCODER:
        for command in re.sub(r"\\\n\s*", "", commands).splitlines():
            verb, rest = dispatch.find_verb(command.split()[1:])
            args = dispatch.parser_of(verb).parse_args(rest)
            for key in getattr(args, "cfg_options", None) or {}:
                assert has(plain_config(args.config), key)
