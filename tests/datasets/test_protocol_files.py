"""Protocol files from official annotations: counts, contents, resuming, errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from smartclip_det.core.errors import UserError
from smartclip_det.core.vocabularies import COCO_CLASSES, OV_COCO_65, OV_COCO_BASE, OV_COCO_NOVEL
from smartclip_det.datasets import protocol_files as pf

BASE = [i for i, n in COCO_CLASSES.items() if n in OV_COCO_BASE]
NOVEL = [i for i, n in COCO_CLASSES.items() if n in OV_COCO_NOVEL]
UNUSED = [i for i, n in COCO_CLASSES.items() if n not in OV_COCO_65]


def coco_file(path: Path, images: int, with_base: int) -> Path:
    """``images`` images, the first ``with_base`` with one base, one novel and one unused box, the others without base."""
    annotations = []
    for i in range(1, images + 1):
        classes = [NOVEL[i % 17], UNUSED[i % 15]] + ([BASE[i % 48]] if i <= with_base else [])
        for c in classes:
            n = len(annotations) + 1
            annotations.append({"id": n, "image_id": i, "category_id": c, "bbox": [1.5, 2, 3, 4], "area": 12.25})
    data = {
        "info": {"year": 2017},
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "width": 640, "height": 480} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": n} for i, n in COCO_CLASSES.items()],
    }
    path.write_text(json.dumps(data))
    return path


def test_full_size_train_gives_the_published_count(tmp_path: Path) -> None:
    source = pf.AnnotationStream(coco_file(tmp_path / "train.json", 118_287, 107_761), progress=False)
    entries = pf.make_files(source, pf.ov_coco_train()[1:], tmp_path)
    assert entries[0]["images"] == 107_761
    assert entries[0]["annotations"] == 107_761
    assert entries[0]["categories"] == 65
    assert entries[0]["made"]


def test_full_size_with_another_count_is_refused(tmp_path: Path) -> None:
    source = pf.AnnotationStream(coco_file(tmp_path / "val.json", 5_000, 4_000), progress=False)
    with pytest.raises(UserError, match=r"5,000 images in, 5,000 out, but the protocol has 4,836"):
        pf.make_files(source, pf.ov_coco_val(), tmp_path)
    assert not list(tmp_path.glob("instances_val2017_all_2.json*"))


def test_content_is_that_of_the_source(tmp_path: Path) -> None:
    path = coco_file(tmp_path / "t.json", 40, 25)
    pf.make_files(pf.AnnotationStream(path, progress=False), pf.ov_coco_train(), tmp_path)
    source = json.loads(path.read_text())
    made = json.loads((tmp_path / "instances_train2017_seen_2.json").read_text())
    assert made["info"] == source["info"]
    assert made["images"] == source["images"][:25]
    assert made["annotations"] == [a for a in source["annotations"] if a["category_id"] in BASE]
    assert [c["name"] for c in made["categories"]] == list(OV_COCO_BASE)
    joint = json.loads((tmp_path / "instances_train2017_seen_2_65_cat.json").read_text())
    assert joint["annotations"] == made["annotations"]
    assert [c["name"] for c in joint["categories"]] == list(OV_COCO_65)


def test_done_files_are_kept_and_broken_ones_made_again(tmp_path: Path) -> None:
    source = pf.AnnotationStream(coco_file(tmp_path / "t.json", 20, 10), progress=False)
    first = pf.make_files(source, pf.ov_coco_train(), tmp_path)
    second = pf.make_files(source, pf.ov_coco_train(), tmp_path)
    assert [e["made"] for e in second] == [False, False]
    target = tmp_path / first[0]["name"]
    target.write_text(target.read_text()[:50])
    third = pf.make_files(source, pf.ov_coco_train(), tmp_path)
    assert [e["made"] for e in third] == [True, False]
    assert third[0]["sha256"] == first[0]["sha256"]


def test_real_slice(shared: Path, tmp_path: Path) -> None:
    path = shared / "coco_mini_train/instances_train2017.json"
    data = json.loads(path.read_text())
    pf.make_files(pf.AnnotationStream(path, progress=False), pf.ov_coco_train(), tmp_path)
    made = json.loads((tmp_path / "instances_train2017_seen_2_65_cat.json").read_text())
    expected = [a for a in data["annotations"] if a["category_id"] in BASE]
    assert made["annotations"] == expected
    assert {i["id"] for i in made["images"]} == {a["image_id"] for a in expected}


def lvis_file(path: Path, boxes: int) -> Path:
    """1,203 classes as in LVIS v1; realistic polygons; every third box is of a rare class."""
    counts = [("f", 405), ("c", 461), ("r", 337)]
    categories = [{"frequency": f} for f, n in counts for _ in range(n)]
    categories = [{"id": i, "name": f"class {i}", **c} for i, c in enumerate(categories, 1)]
    with path.open("w") as handle:
        handle.write('{"categories": ' + json.dumps(categories) + ', "images": [')
        urls = ["train2017", "val2017"]
        handle.write(",".join(json.dumps({"id": i, "coco_url": f"http://x/{urls[i % 2]}/{i}.jpg"}) for i in range(100)))
        handle.write('], "annotations": [')
        polygon = [[123.45 + v for v in range(120)]]
        for n in range(boxes):
            category = 900 if n % 3 == 0 else 1 + n % 800
            entry = {
                "id": n + 1,
                "image_id": n % 100,
                "category_id": category,
                "bbox": [1, 2, 3.25, 4],
                "area": 13.0,
                "segmentation": polygon,
            }
            handle.write(("," if n else "") + json.dumps(entry))
        handle.write("]}")
    return path


def test_lvis_without_rare_boxes(tmp_path: Path) -> None:
    source = pf.AnnotationStream(lvis_file(tmp_path / "lvis.json", 300), progress=False)
    categories = list(source.entries("categories"))
    entry = pf.make_files(source, pf.ov_lvis_train(categories, "lvis.json"), tmp_path)[0]
    assert (entry["images"], entry["annotations"], entry["categories"]) == (100, 200, 1203)
    entry = pf.make_files(source, pf.lvis_minival(categories), tmp_path)[0]
    assert (entry["images"], entry["annotations"]) == (50, 150)


def test_lvis_of_other_counts_is_refused() -> None:
    categories = [{"id": i, "name": str(i), "frequency": "f"} for i in range(1203)]
    with pytest.raises(UserError, match="405, 461 and 337"):
        pf.ov_lvis_train(categories, "lvis.json")
    with pytest.raises(UserError, match="not an LVIS annotation file"):
        pf.ov_lvis_train([{"id": 1, "name": "a"}], "coco.json")


def test_memory_does_not_grow_with_the_file(tmp_path: Path, repo: Path) -> None:
    """70 MB of annotations are about 700 MB of Python objects; the streamed split needs far less."""
    path = lvis_file(tmp_path / "lvis.json", 60_000)
    assert path.stat().st_size > 60e6
    code = (
        "import resource, sys, json\n"
        "from pathlib import Path\n"
        "from smartclip_det.datasets import protocol_files as pf\n"
        "source = pf.AnnotationStream(Path(sys.argv[1]), progress=False)\n"
        "rules = pf.ov_lvis_train(list(source.entries('categories')), 'x')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "pf.make_files(source, rules, Path(sys.argv[2]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path)], cwd=repo, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 100_000  # KiB


@pytest.mark.parametrize("tool", ["split_ov_coco", "split_ov_lvis"])
def test_tools_refuse_nothing_to_do_and_missing_files(tool: str, repo: Path, tmp_path: Path) -> None:
    base = [sys.executable, f"tools/data/{tool}.py", "--out", str(tmp_path)]
    for options, said in (
        ([], "Give --train, --val or both"),
        (["--train", "no.json"], "No annotation file at no.json"),
    ):
        done = subprocess.run([*base, *options], cwd=repo, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert said in done.stderr
