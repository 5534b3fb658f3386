"""Labels read by Label Studio and FiftyOne, where installed.

Both need other versions of numpy and OpenCV than the tests, so they are in a separate environment, whose Python is
given by SMARTCLIP_DET_READERS_PYTHON (``uv pip install label-studio-sdk fiftyone``).
"""

from __future__ import annotations

import json
import os
import subprocess
import warnings

import numpy as np
import pytest
from PIL import Image

from smartclip_det.formats.label_log import PictureLabels
from smartclip_det.formats.label_sets import files_of, link_pictures, write_files

NAMES = ["red mug", "left dog", "kite & <co>"]
STUDIO = """
import json, sys
from label_studio_sdk.label_interface import LabelInterface
interface = LabelInterface(open(f"{sys.argv[1]}/label_config.xml").read())
interface.validate()
tasks = json.load(open(f"{sys.argv[1]}/tasks.json"))
predictions = [p for t in tasks for p in t["predictions"]]
wrong = json.loads(json.dumps(predictions[-1]))
wrong["result"][0]["value"]["rectanglelabels"] = ["none"]
print(json.dumps([[interface.validate_task({"data": t["data"]}) for t in tasks],
                  [interface.validate_prediction(p, return_errors=True) for p in predictions],
                  interface.validate_prediction(wrong)]))
"""
FIFTYONE = """
import json, os, sys
import fiftyone
from fiftyone.utils.coco import COCODetectionDatasetImporter
from fiftyone.utils.voc import VOCDetectionDatasetImporter
from fiftyone.utils.yolo import YOLOv5DatasetImporter
root, found = sys.argv[1], {}
photos = f"{root}/photos"
for layout, importer in (
    ("coco", COCODetectionDatasetImporter(data_path=photos, labels_path=f"{root}/coco/annotations.json")),
    ("yolo", YOLOv5DatasetImporter(dataset_dir=f"{root}/yolo", yaml_path="data.yaml", split="train")),
    ("voc", VOCDetectionDatasetImporter(data_path=photos, labels_path=f"{root}/voc/Annotations")),
):
    with importer:
        for path, _, labels in importer:
            labels = labels.get("detections") if isinstance(labels, dict) else labels
            boxes = labels.detections if labels else []
            found.setdefault(layout, {})[os.path.basename(path)] = [[d.label, *d.bounding_box] for d in boxes]
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def readers():
    python = os.environ.get("SMARTCLIP_DET_READERS_PYTHON")
    if not python:
        message = "Label Studio's and FiftyOne's readers absent: set SMARTCLIP_DET_READERS_PYTHON to their Python"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)

    def read(script, folder, tmp_path):
        environment = {**os.environ, "FIFTYONE_DO_NOT_TRACK": "1", "FIFTYONE_DATABASE_DIR": str(tmp_path / "db")}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [python, "-c", script, str(folder)], capture_output=True, text=True, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.rpartition("FOUND")[2])

    return read


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    (root / "photos/day 2").mkdir(parents=True)
    rows = []
    for n in range(4):
        file = f"day 2/p{n}.png" if n > 2 else f"p{n}.png"
        Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(root / "photos" / file)
        boxes = [[3.5, 4.25, 30, 40.5], [10, 12, 80, 60]][:n]
        rows.append(PictureLabels(file, 10, (80, 60), boxes, [0.9, 0.61][:n], [n % 3, 2][:n]))
    for layout in ("coco", "yolo", "voc", "label-studio"):
        write_files(root / layout, files_of(layout, rows, NAMES))
    link_pictures(root / "yolo", root / "photos")
    return root, rows


def test_label_studio_takes_tasks_and_set_up(readers, sets, tmp_path):
    root, rows = sets
    tasks, predictions, wrong = readers(STUDIO, root / "label-studio", tmp_path)
    assert tasks == [True] * len(rows)
    assert predictions == [[]] * len(rows)
    assert wrong is False


def test_fiftyone_reads_three_layouts(readers, sets, tmp_path):
    root, rows = sets
    found = readers(FIFTYONE, root, tmp_path)
    for layout in ("coco", "yolo", "voc"):
        # VOC's integer pixels enclose the box.
        slack = 2.1 / 60 if layout == "voc" else 1e-3
        for row in rows:
            read = found[layout][row.file.rpartition("/")[2]]
            assert [r[0] for r in read] == [NAMES[k] for k in row.labels]
            for (_, x, y, w, h), (x1, y1, x2, y2) in zip(read, row.boxes, strict=True):
                assert [x, y, x + w, y + h] == pytest.approx([x1 / 80, y1 / 60, x2 / 80, y2 / 60], abs=slack)
