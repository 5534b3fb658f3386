"""Training images that are in the validation and test splits of a benchmark.

All images of the RefCOCO family are from COCO train2014, a subset of train2017: a detector trained on COCO has seen
them with boxes, a caption model trained on COCO captions with texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartclip_det.formats.annotations import GroundTruth, load_ground_truth, with_images
from smartclip_det.formats.captions import detect_layout, read_caption_records
from smartclip_det.formats.expressions.record import Expression
from smartclip_det.formats.json_files import read_json
from smartclip_det.formats.pictures import picture_name
from smartclip_det.formats.texts import read_text

_COCO = re.compile(r"(?:COCO_(?:train|val)20\d\d_)?(\d{12})(?:_\d+)?$")


def image_key(name: str) -> str:
    """Name of an image that is equal in all files: COCO's number regardless of year and folder, else the file stem."""
    stem = Path(name).stem
    match = _COCO.search(stem)
    return f"coco:{int(match[1])}" if match else stem


def training_images(path: str | Path, tell: Callable[[str], None] = lambda _: None) -> dict[str, list[str]]:
    """Image names of a training set by key; images with the same stem in several folders share a key.

    Args:
        path: COCO or LVIS annotations, a caption file of any layout, or a text file with one name per line.
        tell: receives a summary of a caption file and of what was skipped.

    Raises:
        UserError: for other files.
    """
    path = Path(path)
    if path.suffix == ".txt" and path.is_file():
        names: Iterable[str] = [n for line in read_text(path, "list of names").split("\n") for n in _names_in(line)]
    elif path.is_file() and path.suffix == ".json" and detect_layout(path) == "coco":
        names = _names_of(_images_of(path))
    else:
        records, counts = read_caption_records(path)
        tell(counts.summary(path.name, len(records)))
        # Images inside a shard are named by their sample only.
        names = [str(r.id) if ".tar#" in r.image else r.image for r in records]
    out: dict[str, list[str]] = {}
    for n in names:
        out.setdefault(image_key(n), []).append(n)
    return out


def _names_in(line: str) -> list[str]:
    """The name on a line, including blanks; or several names, if each has a file extension."""
    words = line.split()
    return words if all(Path(w).suffix for w in words) else [line.strip()]


def _names_of(truth: GroundTruth) -> list[str]:
    return [picture_name(i, truth.path).replace("\\", "/") for i in truth.data["images"]]


@dataclass
class Leak:
    """Images of one benchmark split that a training set contains.

    Attributes:
        benchmark: name of the benchmark.
        split: split of the benchmark.
        images: number of different images in the split.
        seen: keys of those in the training set.
        sentences: number of sentences about the seen images.
    """

    benchmark: str
    split: str
    images: int
    seen: set[str]
    sentences: int


def find_leaks(training: dict[str, list[str]], benchmark: str, expressions: Sequence[Expression]) -> list[Leak]:
    """Leaks of one benchmark by split; its own training split does not count."""
    by_split: dict[str, list[str]] = {}
    for e in expressions:
        by_split.setdefault(e.split or "unnamed", []).append(image_key(e.file_name))
    out = []
    for split, keys in sorted(by_split.items()):
        if split != "train":
            seen = set(keys) & set(training)
            out.append(Leak(benchmark, split, len(set(keys)), seen, sum(k in seen for k in keys)))
    return out


def _images_of(source: str | Path | Mapping[str, Any]) -> GroundTruth:
    """A COCO file as annotations; caption files have neither categories nor boxes to check."""
    content = source if isinstance(source, Mapping) else read_json(source, "training set")
    where = "the training set" if isinstance(source, Mapping) else str(source)
    if isinstance(content, Mapping) and "categories" not in content:
        content = {**content, "annotations": [], "categories": []}
    return load_ground_truth(content, need_annotations=False, where=where)


def without(source: str | Path | Mapping[str, Any], leaked: set[str]) -> dict[str, Any]:
    """COCO or LVIS annotations, or COCO captions, without the leaked images and their annotations."""
    content = source if isinstance(source, Mapping) else read_json(source, "training set")
    truth = _images_of(content)
    names = _names_of(truth)
    kept = {i["id"] for i, n in zip(truth.data["images"], names, strict=True) if image_key(n) not in leaked}
    left = with_images(truth, kept).data
    if "categories" in content:
        return left
    annotations = [a for a in content.get("annotations", []) if a["image_id"] in kept]
    return {**content, "images": left["images"], "annotations": annotations}
