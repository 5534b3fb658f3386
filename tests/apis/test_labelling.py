"""Labelling a folder: resumed runs are byte-identical, broken files are reported, corrections are kept."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from smartclip_det.apis import labelling
from smartclip_det.apis.labelling import LabelOptions, label_folder, summary_lines
from smartclip_det.core.errors import UserError
from smartclip_det.core.words import LABEL_FORMATS
from smartclip_det.formats.label_log import LabelLog
from smartclip_det.formats.thresholds import Thresholds
from tests.apis.rectangles import COLOURS, Rectangles, scene

NAMES = list(COLOURS)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("label") / "photos"
    (folder / "day 2").mkdir(parents=True)
    for n in range(9):
        Image.fromarray(scene((80 + n, 60), 3, n)[0]).save(folder / ("day 2" if n > 5 else ".") / f"p{n}.png")
    (folder / "p2b.jpg").write_bytes(b"\xff\xd8 cut")
    (folder / "p3b.png").write_bytes((folder / "p3.png").read_bytes()[:70])
    (folder / "p5b.png").write_bytes(b"")
    (folder / "p5c.png").write_bytes(b"")
    (folder / "notes.txt").write_text("x")
    return folder


def options(photos, out, **more):
    return LabelOptions(photos, NAMES, out, **{"threshold": 0.93, "batch_size": 3, "progress": False, **more})


def tree(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "images" not in p.relative_to(folder).parts
    }


class Dying(Rectangles):
    """Kills its process without cleanup at the n-th image."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def detect(self, image, names):
        self.at -= 1
        if self.at < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().detect(image, names)


def killed(work):
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("layout", LABEL_FORMATS)
def test_killed_at_any_picture_and_gone_on_with_it_is_equal_to_the_byte(layout, photos, tmp_path):
    label_folder(options(photos, tmp_path / "whole", layout=layout), Rectangles())
    whole = tree(tmp_path / "whole")
    assert len(whole) >= 4
    for at in (0, 1, 4, 8) if layout == "yolo" else (4,):
        out = tmp_path / f"at{at}"
        killed(lambda at=at, out=out: label_folder(options(photos, out, layout=layout), Dying(at)))
        assert (out / "answers.jsonl").is_file()
        assert not (out / "summary.json").exists()
        going_on = Rectangles()
        label_folder(options(photos, out, layout=layout), going_on)
        assert sum(going_on.batches) == 9 - {0: 0, 1: 0, 4: 3, 8: 7}[at]
        assert tree(out) == whole


def test_killed_in_the_middle_of_a_line_or_of_writing(photos, tmp_path, monkeypatch):
    label_folder(options(photos, tmp_path / "whole", layout="yolo"), Rectangles())
    whole, out = tree(tmp_path / "whole"), tmp_path / "out"

    def half_a_line():
        put = LabelLog._put

        def dying(self, values):
            put(self, values)
            if len(self.done) >= 3:
                os.truncate(self.path, self.path.stat().st_size - 20)
                os.kill(os.getpid(), signal.SIGKILL)

        LabelLog._put = dying
        label_folder(options(photos, out, layout="yolo"), Rectangles())

    killed(half_a_line)
    assert not (out / "answers.jsonl").read_bytes().endswith(b"\n")

    def half_the_files():
        from smartclip_det.formats import label_sets

        write, count = label_sets.write_whole, []

        def dying(path, text):
            count.append(path)
            if len(count) == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(path, text)

        label_sets.write_whole = dying
        label_folder(options(photos, out, layout="yolo"), Rectangles())

    killed(half_the_files)
    label_folder(options(photos, out, layout="yolo"), Rectangles())
    assert tree(out) == whole


def test_broken_files_are_told_by_reason_and_cost_no_other_one(photos, tmp_path):
    result = label_folder(options(photos, tmp_path / "out"), Rectangles())
    assert result.pictures == 9
    assert sum(map(len, result.skipped.values())) == 4
    assert ["p2b.jpg", "p5b.png", "p5c.png"] in result.skipped.values()
    assert not any("photos" in reason or ".png" in reason for reason in result.skipped)
    assert "1 .txt" in " ".join(result.notes)
    text = "\n".join(summary_lines(result))
    assert "skipped 3: cannot identify image file (first: p2b.jpg)" in text
    assert "9 images" in text
    assert json.loads((tmp_path / "out/summary.json").read_text())["left_out"] == result.skipped


def test_new_and_changed_pictures_alone_are_looked_at(photos, tmp_path):
    own = tmp_path / "photos"
    own.mkdir()
    for n in range(6):
        Image.fromarray(scene((80, 60), 3, n)[0]).save(own / f"p{n}.png")
    label_folder(options(own, tmp_path / "out", batch_size=1), Rectangles())
    again = Rectangles()
    label_folder(options(own, tmp_path / "out", batch_size=1, threshold=0.97, layout="voc"), again)
    assert again.batches == []
    Image.fromarray(scene((90, 60), 3, 50)[0]).save(own / "p3.png")
    Image.fromarray(scene((90, 60), 3, 51)[0]).save(own / "p9.png")
    result = label_folder(options(own, tmp_path / "out2", batch_size=1), Rectangles())
    label_folder(options(own, tmp_path / "out", batch_size=1), again)
    assert again.batches == [1, 1]
    assert result.pictures == 7
    assert (tmp_path / "out/annotations.json").read_bytes() == (tmp_path / "out2/annotations.json").read_bytes()


def test_answers_of_another_kind_are_not_gone_on_with(photos, tmp_path):
    label_folder(options(photos, tmp_path / "out"), Rectangles())
    with pytest.raises(UserError, match="made with other settings .names: .*now"):
        label_folder(LabelOptions(photos, ["red"], tmp_path / "out", progress=False), Rectangles())
    with pytest.raises(UserError, match="tile: null, now .50, 10"):
        label_folder(options(photos, tmp_path / "out", tile=(50, 10)), Rectangles())
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/answers.jsonl").write_text("what\n")
    with pytest.raises(UserError, match="not a label log"):
        label_folder(options(photos, tmp_path / "odd"), Rectangles())
    with LabelLog(tmp_path / "busy/answers.jsonl", {}), pytest.raises(UserError, match="Another run is writing to"):
        label_folder(options(photos, tmp_path / "busy"), Rectangles())


def test_a_log_down_to_a_lower_score_serves_for_higher_ones_alone(photos, tmp_path):
    out = tmp_path / "out"
    Thresholds({"red": 0.005}, 0.5, {}).write(tmp_path / "low.json")
    label_folder(options(photos, out, thresholds=tmp_path / "low.json"), Rectangles())
    again = Rectangles()
    label_folder(options(photos, out), again)
    assert again.batches == []
    label_folder(options(photos, tmp_path / "high"), Rectangles())
    with pytest.raises(UserError, match="floor: 0.01, now 0.005"):
        label_folder(options(photos, tmp_path / "high", thresholds=tmp_path / "low.json"), Rectangles())


def test_corrected_labels_are_not_written_over(photos, tmp_path):
    out = tmp_path / "out"
    label_folder(options(photos, out, layout="yolo"), Rectangles())
    before = (out / "labels/p1.txt").read_text()
    label_folder(options(photos, out, layout="yolo", threshold=0.99), Rectangles())
    assert (out / "labels/p1.txt").read_text() != before
    (out / "labels/p1.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(UserError, match=r"1 files in .* edited after .*labels/p1.txt"):
        label_folder(options(photos, out, layout="yolo"), Rectangles())
    assert (out / "labels/p1.txt").read_text() == "0 0.5 0.5 0.1 0.1\n"
    label_folder(options(photos, out, layout="yolo", overwrite=True), Rectangles())
    assert (out / "labels/p1.txt").read_text() == before


def test_thresholds_by_class(photos, tmp_path):
    Thresholds({"red": 0.0, "green": 1.0}, 0.95, {}).write(tmp_path / "t.json")
    result = label_folder(options(photos, tmp_path / "out", thresholds=tmp_path / "t.json"), Rectangles())
    plain = label_folder(options(photos, tmp_path / "all", threshold=0.0), Rectangles())
    assert result.boxes["red"] == plain.boxes["red"]
    assert "green" not in result.boxes
    assert 0 < result.boxes["blue"] < plain.boxes["blue"]
    for wrong, said in (
        ("{}", "not a thresholds file"),
        (json.dumps({"kind": "smartclip_det.thresholds/1", "default": 2, "thresholds": {}}), "numbers in"),
    ):
        (tmp_path / "t.json").write_text(wrong)
        with pytest.raises(UserError, match=said):
            label_folder(options(photos, tmp_path / "out3", thresholds=tmp_path / "t.json"), Rectangles())


def test_pictures_that_would_share_a_file_of_labels(photos, tmp_path):
    own = tmp_path / "photos"
    own.mkdir()
    for name in ("a.png", "a.jpg"):
        Image.fromarray(scene((80, 60), 3)[0]).save(own / name)
    with pytest.raises(UserError, match="a.jpg and a.png would share one yolo label file"):
        label_folder(options(own, tmp_path / "out", layout="yolo"), Rectangles())
    assert label_folder(options(own, tmp_path / "out"), Rectangles()).pictures == 2
    # Files written into the image folder are not labelled.
    assert label_folder(options(own, own / "labels"), Rectangles()).pictures == 2
    assert label_folder(options(own, own / "labels"), Rectangles()).pictures == 2


class TestReview:
    def test_least_certain_first_counts_and_a_click_away(self, photos, tmp_path):
        out = tmp_path / "out"
        result = label_folder(options(photos, out), Rectangles())
        page = (out / "review.html").read_text()
        addresses = re.findall(r'<a href="([^"]+)"', page)
        assert len(addresses) == 9
        assert all((out / a.replace("%20", " ")).is_file() for a in addresses)
        assert any("day%202" in a for a in addresses)
        assert re.findall(r'src="(?!data:)', page) == []
        rows = {r["file"]: r for r in map(json.loads, (out / "answers.jsonl").read_text().splitlines()[1:])}
        margins = [
            min((abs(s - 0.93) for s in rows[a.partition("photos/")[2].replace("%20", " ")]["scores"]), default=1)
            for a in addresses
        ]
        assert margins == sorted(margins)
        for name, count in result.boxes.items():
            assert re.search(rf"<td>{name}</td><td>{count}</td>", page)

    def test_it_stays_small(self, photos, tmp_path):
        label_folder(options(photos, tmp_path / "out", review=4), Rectangles())
        assert (tmp_path / "out/review.html").read_text().count("<a href") == 4


class TestReadBack:
    """Each layout is read by its own reader and by ours."""

    @pytest.fixture(scope="class")
    def sets(self, photos, tmp_path_factory):
        root = tmp_path_factory.mktemp("sets")
        for layout in LABEL_FORMATS:
            label_folder(options(photos, root / layout, layout=layout), Rectangles())
        rows = [json.loads(line) for line in (root / "coco/answers.jsonl").read_text().splitlines()[1:]]
        boxes = {
            r["file"]: [
                (NAMES[k], *b) for b, s, k in zip(r["boxes"], r["scores"], r["labels"], strict=True) if s >= 0.93
            ]
            for r in rows
            if not r["fault"]
        }
        assert sum(map(len, boxes.values())) > 10
        return root, boxes

    def test_coco(self, sets):
        from pycocotools.coco import COCO

        from smartclip_det.formats.annotations import load_ground_truth

        root, boxes = sets
        coco = COCO(str(root / "coco/annotations.json"))
        for image in coco.loadImgs(coco.getImgIds()):
            rows = coco.loadAnns(coco.getAnnIds(image["id"]))
            read = [(coco.cats[a["category_id"]]["name"], *a["bbox"]) for a in rows]
            assert [(n, x, y, x + w, y + h) for n, x, y, w, h in read] == [
                (n, *map(pytest.approx, b)) for n, *b in boxes[image["file_name"]]
            ]
        assert len(load_ground_truth(root / "coco/annotations.json").data["images"]) == 9

    def test_yolo(self, sets, photos, tmp_path):
        from smartclip_det.formats.yolo import read_yolo_yaml, yolo_to_coco

        root, boxes = sets
        source = read_yolo_yaml(root / "yolo/data.yaml", "train")
        assert list(source.names) == NAMES
        found = yolo_to_coco(source.images, source.names).data
        assert len(found["annotations"]) == sum(map(len, boxes.values()))
        sv = pytest.importorskip("supervision")
        for file in boxes:
            (tmp_path / Path(file).name).symlink_to(photos / file)
        read = sv.DetectionDataset.from_yolo(str(tmp_path), str(root / "yolo/labels"), str(root / "yolo/data.yaml"))
        flat = {f: b for f, b in boxes.items() if "/" not in f}
        seen = {Path(path).name: theirs.xyxy for path, _, theirs in read if Path(path).name in flat}
        assert seen.keys() == flat.keys()
        for name, rows in flat.items():
            assert np.allclose(seen[name], np.array([b for _, *b in rows]).reshape(-1, 4), atol=0.05)

    def test_voc(self, sets, photos):
        from smartclip_det.formats.voc import voc_to_coco

        root, boxes = sets
        found = voc_to_coco(root / "voc/Annotations", photos).data
        assert len(found["annotations"]) == sum(map(len, boxes.values()))
        text = (root / "voc/Annotations/day 2/p7.xml").read_text()
        box = ElementTree.fromstring(text).find("object/bndbox")
        _, x1, y1, x2, y2 = boxes["day 2/p7.png"][0]
        assert [int(box.findtext(k)) for k in ("xmin", "ymin", "xmax", "ymax")] == [x1 + 1, y1 + 1, x2, y2]

    def test_label_studio(self, sets):
        root, boxes = sets
        tasks = json.loads((root / "label-studio/tasks.json").read_text())
        assert len(tasks) == 9
        task = next(t for t in tasks if "day%202/p7" in t["data"]["image"])
        first, (name, x1, *_) = task["predictions"][0]["result"][0], boxes["day 2/p7.png"][0]
        assert first["value"]["rectanglelabels"] == [name]
        assert first["value"]["x"] == pytest.approx(100 * x1 / first["original_width"], abs=1e-3)
        config = ElementTree.parse(root / "label-studio/label_config.xml").getroot()
        assert [e.get("value") for e in config.iter("Label")] == NAMES
        assert {first["from_name"], first["to_name"]} == {e.get("name") for e in config}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"threshold": 2}, "threshold"),
        ({"layout": "pascal"}, "format='pascal'"),
        ({"photos": Path("none")}, "is not a folder"),
        ({"tile": (9, 9)}, "overlap"),
    ],
)
def test_bad_options_come_first(change, said, photos, tmp_path):
    given = {"photos": photos, "names": NAMES, "out": tmp_path / "out", **change}
    with pytest.raises(UserError, match=said):
        label_folder(LabelOptions(**given), None)
    assert not (tmp_path / "out").exists()


def test_the_reason_has_no_name_of_a_file():
    picture = labelling.Picture(Path("/a/b.png"), "b.png")
    assert labelling._reason("The image /a/b.png cannot be read (cannot identify image file '/a/b.png').", picture) == (
        "cannot identify image file"
    )
