"""Resumable steps, the report page, and the contents of the toy summary."""

from __future__ import annotations

import pytest
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.utils.parallel import map_in_processes
from smartclip_det.utils.steps import Step, StepRunner, last_progress
from smartclip_det.visualization.report import ReportPage


def write(path, text="x"):
    return ["-c", f"import pathlib; pathlib.Path(r'{path}').write_text('{text}')"]


def test_steps_run_once_until_their_command_changes_and_then_all_after_them(tmp_path, capsys):
    first, second = tmp_path / "a", tmp_path / "b"
    stages = [[Step("one", write(first), [first])], [Step("two", write(second), [second])]]
    runner = StepRunner(tmp_path / "run")
    runner.run_stages(stages)
    assert runner.ran == {"one", "two"}
    again = StepRunner(tmp_path / "run")
    again.run_stages(stages)
    assert again.ran == set()
    assert set(again.seconds) == {"one", "two"}
    assert again.spent > runner.spent > 0
    changed = StepRunner(tmp_path / "run")
    changed.run_stages([[Step("one", write(first, "y"), [first])], stages[1]])
    assert changed.ran == {"one", "two"}
    second.unlink()
    missing = StepRunner(tmp_path / "run")
    missing.run_stages([[Step("one", write(first, "y"), [first])], stages[1]])
    assert missing.ran == {"two"}


def test_an_interrupted_training_resumes_only_with_the_same_settings(tmp_path):
    work, done = tmp_path / "work", tmp_path / "done"
    work.mkdir()
    last = work / "last_checkpoint"
    last.write_text("of an earlier training")
    code = f"""
import pathlib, sys
if "--resume" not in sys.argv and sys.argv[1] != "early":
    pathlib.Path(r"{last}").write_text("new")
if "--resume" not in sys.argv:
    sys.exit("killed")
pathlib.Path(r"{done}").write_text("x")
"""

    def start(setting):
        step = Step("train", ["-c", code, setting], [done], work)
        StepRunner(tmp_path / "run").run_stages([[step]])

    for setting in ("early", "early", "a", "b"):
        with pytest.raises(UserError, match="killed"):
            start(setting)
    start("b")
    done.unlink()
    with pytest.raises(UserError, match="killed"):
        start("b")


def test_steps_side_by_side_are_all_remembered(tmp_path):
    steps = [Step(f"s{n}", write(tmp_path / f"out{n}"), [tmp_path / f"out{n}"]) for n in range(8)]
    StepRunner(tmp_path / "run").run_stages([steps])
    assert set(StepRunner(tmp_path / "run").done) == {s.name for s in steps}


def test_a_changed_config_is_a_changed_step(monkeypatch, tmp_path):
    from smartclip_det.utils import config_files, steps

    for module in (steps, config_files):
        monkeypatch.setattr(module, "config_root", lambda: tmp_path / "configs")
    for folder in ("configs/_base_", "configs/mine"):
        (tmp_path / folder).mkdir(parents=True)
    config, base = tmp_path / "configs/mine/a.py", tmp_path / "configs/_base_/b.py"
    config.write_text('_base_ = "../_base_/b.py"')
    base.write_text("y = 1")
    for name in ("configs/mine/a.py", str(config)):
        step = Step("one", ["-c", "pass", name])
        before = step.config_hash()
        base.write_text(base.read_text() + "1")
        assert step.config_hash() != before
    assert Step("two", ["-c", "pass"]).config_hash() == ""


def test_a_step_starts_a_verb_from_any_folder_with_any_name(tmp_path, monkeypatch):
    """Spaces, commas, brackets and digits reach the command of a step unchanged."""
    from smartclip_det.utils.cfg_options import format_options
    from smartclip_det.utils.steps import verb

    odd = tmp_path / "my photos, [2024]"
    odd.mkdir()
    monkeypatch.chdir(odd)
    (odd / "c d.py").write_text("data_root = 'old/'\nmodel = dict(type='A', names=['a'])\n")
    options = {"data_root": f"{odd}/", "model.names": ["a photo of a {}.", "12", "x, y", 12], "model.type": "2024"}
    command = verb("print-config", "c d.py", *format_options(options))
    StepRunner(odd / "run").run_stages([[Step("print", command)]])
    printed: dict = {}
    exec((odd / "run/logs/print.log").read_text(), printed)
    assert printed["data_root"] == f"{odd}/"
    assert printed["model"] == {"type": "2024", "names": ["a photo of a {}.", "12", "x, y", 12]}


def test_a_failing_step_tells_the_end_of_its_log_and_keeps_what_is_done(tmp_path):
    good = tmp_path / "a"
    runner = StepRunner(tmp_path / "run")
    with pytest.raises(UserError, match=r"(?s)bad failed \(exit 1.*boom"):
        runner.run_stages([[Step("good", write(good), [good])], [Step("bad", ["-c", "raise SystemExit('boom')"])]])
    assert set(StepRunner(tmp_path / "run").done) == {"good"}
    with pytest.raises(UserError, match="did not write"):
        runner.run_stages([[Step("silent", ["-c", "pass"], [tmp_path / "never"])]])


def test_progress_is_the_newest_line_that_tells_it(tmp_path):
    log = tmp_path / "log"
    log.write_text("x - INFO - Epoch(train) [1][50/156]  lr: 1  eta: 0:01:00  time: 0.3 loss: 2\nnoise\n")
    assert last_progress(log) == "Epoch(train) [1][50/156]  lr: 1  eta: 0:01:00"
    log.write_text("bar:  1%|  | 1/9 [9.0image/s]\rbar: 50%|  | 5/9 [9.1image/s]\n")
    assert last_progress(log) == "bar: 50%|  | 5/9 [9.1image/s]"
    log.write_text("")
    assert last_progress(log) == "starting"


def square(n):
    return n * n


def test_processes_keep_the_order():
    assert list(map_in_processes(square, range(200), 2)) == [n * n for n in range(200)]
    assert list(map_in_processes(square, range(3), 4)) == [0, 1, 4]


def test_a_page_needs_no_other_file_and_escapes_what_it_is_given(tmp_path):
    page = ReportPage("A <title>")
    page.heading("Part")
    page.text("plain & `code`", note=True)
    page.table(["name", "value"], [["a", 0.12345], ["b", None], ["c", -1]])
    page.gallery([(Image.new("RGB", (8, 8)), "caption <b>")])
    page.links([(Image.new("RGB", (8, 8)), "photo", '../a"b.jpg?x&y')])
    page.curves({"one": ([0, 1], [1, 2]), "two": ([0, 1], [2, 1])}, "x", "y")
    page.conclusion("<said>", "why")
    page.code("a \\\n    --b")
    page.terms({"word": "meaning"})
    page.bars({"a": 0.5, "b": 0.25}, "share", line=0.1)
    text = page.write(tmp_path / "page.html").read_text()
    assert "A &lt;title&gt;" in text
    assert "<code>code</code>" in text
    assert "0.123" in text
    assert text.count("n/a") == 2
    assert text.count("data:image/png;base64,") == 3
    assert "<figcaption>caption &lt;b&gt;</figcaption>" in text
    assert '<a href="../a&#34;b.jpg?x&amp;y"><figure><img src="data:image/jpeg;base64,' in text
    assert "http" not in text
    assert "<strong>&lt;said&gt;</strong><ul><li>why</li></ul>" in text
    assert "<pre>a \\\n    --b</pre>" in text
    assert "<dt>word</dt><dd>meaning</dd>" in text
    with pytest.raises(UserError, match="1 cells under 2 columns"):
        page.table(["a", "b"], [["x"]])


def test_a_summary_without_a_promised_number_is_refused():
    from smartclip_det.studies.toy_measures import check_complete

    wanted = {"a": ("x", "y"), "b": {"c": ("z",)}}
    check_complete({"a": {"x": 1.0, "y": 0.0}, "b": {"c": {"z": 2.0}}}, wanted)
    with pytest.raises(UserError, match=r"summary\.a\.y was not measured"):
        check_complete({"a": {"x": 1.0}, "b": {}}, wanted)
    with pytest.raises(UserError, match=r"summary\.b\.c\.z is nan"):
        check_complete({"a": {"x": 1.0, "y": 0.0}, "b": {"c": {"z": float("nan")}}}, wanted)
