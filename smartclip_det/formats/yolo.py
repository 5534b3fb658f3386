"""Conversion of YOLO labels to COCO annotations.

A line is a class number and coordinates relative to the image: a box (centre x, centre y, width, height) or a polygon
(x, y of its points; also the four corners of an oriented box). Trackers and predictors append a confidence, a track id
or both to boxes, and pose labels append key points, without marking it in the line. So the meaning of lines is inferred
from the whole set, and an ambiguous set is an error, since any guess could give wrong boxes.
"""

from __future__ import annotations

import math
import os.path
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.words import YOLO_ROWS as ROWS
from smartclip_det.formats.converted import IMAGE_SUFFIXES, Converted, categories_of, pictures_in, refuse_lost
from smartclip_det.formats.pictures import picture_size
from smartclip_det.formats.texts import read_text

#: Tolerance by which labels may leave the image, for rounding.
_SLACK = 0.01
#: Tolerance beyond which six numbers are not a box.
_FAR = 0.05
_OTHER_NAME = {"val": "valid", "valid": "val"}


class _TextLoader(yaml.BaseLoader):
    """Loads every scalar as a string: ``on`` is not a boolean, ``007`` not a seven. Repeated keys are an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(self.construct_object(k, deep=True) for k, _ in node.value if isinstance(k, yaml.ScalarNode))
        twice = [k for k, count in keys.items() if count > 1]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


@dataclass
class YoloData:
    """One split of a YOLO data file.

    Attributes:
        names: class names by number.
        images: image folders, or text files that list images.
        key_points: count of key point numbers after a box; 0 for none.
        notes: as in :class:`Converted`.
    """

    names: list[str]
    images: list[Path]
    key_points: int = 0
    notes: Counter[str] = field(default_factory=Counter)


def read_yolo_yaml(path: str | Path, split: str, images: Path | None = None) -> YoloData:
    """Read class names and images of one split of a YOLO data file.

    Args:
        path: ``data.yaml``.
        split: ``train``, ``val`` (or ``valid``), ``test``.
        images: image folder; overrides the file.

    Raises:
        UserError: for a missing or broken file, one without names, or an unknown split.
    """
    path = Path(path)
    text = read_text(path, "YOLO data file")
    try:
        data = yaml.load(text, Loader=_TextLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} has no names: a YOLO data file must have the keys names, train and val.")
    names = _names(path, data)
    source = YoloData(names, [images] if images else [], _key_points(path, data))
    if images is None:
        entry = data.get(split) or data.get(_OTHER_NAME.get(split, "")) or None
        entries: list[Any] = entry if isinstance(entry, list) else [entry]
        if entry in (None, "null", "~") or not all(isinstance(e, str) and e for e in entries):
            known = [k for k in ("train", "val", "valid", "test") if data.get(k) not in (None, "", "null", "~")]
            raise UserError(f"{path} has no folder for the split {split!r}. It has: {', '.join(known) or 'none'}.")
        source.images = [_place(path, data, split, e, source.notes) for e in entries]
    return source


def _names(path: Path, data: dict[str, Any]) -> list[str]:
    names = data.get("names")
    if isinstance(names, dict):
        numbers = {int(k): v for k, v in names.items() if isinstance(k, str) and k.isdecimal()}
        if len(numbers) != len(names) or sorted(numbers) != list(range(len(names))):
            raise UserError(f"{path}: names must be numbered from 0 without gaps; got {list(names)[:5]}...")
        names = [numbers[k] for k in sorted(numbers)]
    if not isinstance(names, list) or not names:
        raise UserError(f"{path} has no names: expected a list, or a map from number to name.")
    odd = [n for n in names if not isinstance(n, str) or not n.strip()]
    if odd:
        raise UserError(f"{path}: the name {odd[0]!r} is not a string; quote it.")
    count = data.get("nc")
    if isinstance(count, str) and count.isdecimal() and int(count) != len(names):
        raise UserError(f"{path}: nc is {count}, but {len(names)} names are listed. Fix one of them.")
    return names


def _key_points(path: Path, data: dict[str, Any]) -> int:
    shape = data.get("kpt_shape")
    if shape in (None, "", "null", "~"):
        return 0
    good = isinstance(shape, list) and len(shape) == 2 and all(isinstance(v, str) and v.isdecimal() for v in shape)
    if not good or int(shape[0]) < 1 or shape[1] not in ("2", "3"):
        raise UserError(f"{path}: kpt_shape is {shape!r}; expected [number of key points, 2 or 3].")
    return int(shape[0]) * int(shape[1])


def _place(path: Path, data: dict[str, Any], split: str, entry: str, notes: Counter[str]) -> Path:
    """Resolve the folder of a split.

    Entries are relative to ``path``, which is relative to the data file. Roboflow exports write ``../train/images`` in
    a file that is next to ``train``, so that location is tried as well.
    """
    entry = entry.replace("\\", "/")
    given = data.get("path")
    roots = (
        [path.parent / given.replace("\\", "/")] if isinstance(given, str) and given not in ("", "null", "~") else []
    )
    tried = []
    for root in [*roots, path.parent]:
        sibling = root / entry.removeprefix("../")
        tried += [root / entry, sibling]
        if (root / entry).exists():
            if sibling != root / entry and sibling.exists():
                notes[f"reading of {entry!r}: {root / entry} was used, {sibling} exists as well"] += 1
            return root / entry
        if sibling.exists():
            return sibling
    places = ", ".join(dict.fromkeys(os.path.normpath(t) for t in tried))
    raise UserError(f"{path}: {split} is {entry!r}, but nothing exists at {places}. Give the folder with --images.")


def yolo_to_coco(
    images: Path | Sequence[Path],
    names: Sequence[str],
    labels: Path | None = None,
    *,
    key_points: int = 0,
    rows: str = "auto",
) -> Converted:
    """Convert images with YOLO labels to COCO annotations.

    Args:
        images: image folders, searched recursively, and text files that list images. ``file_name`` is relative to the
            folder, or to the common folder of all images.
        names: class names by number.
        labels: folder of ``.txt`` files with the same relative names; default: the image path with the last "images"
            component replaced by "labels", which is YOLO's rule.
        key_points: count of key point numbers after each box.
        rows: how to read rows, in :data:`ROWS`.

    Raises:
        UserError: for folders without images, label files without an image, and invalid or ambiguous lines; names file
            and line.
    """
    check_choice("rows", rows, ROWS)
    sources = [images] if isinstance(images, Path) else list(images)
    notes: Counter[str] = Counter()
    paths = _pictures(sources, notes)
    folders = [s for s in sources if s.is_dir()]
    root = sources[0] if folders == sources[:1] == sources else Path(os.path.commonpath([p.parent for p in paths]))
    texts = [labels / p.relative_to(root).with_suffix(".txt") if labels else _label_file(p) for p in paths]
    for folder in folders if labels is None else [labels]:
        _check_labels(labels or _label_file(folder / "any").parent, folder, set(texts))
    if not any(t.is_file() for t in texts):
        raise UserError(
            f"None of {len(paths)} images has a label file, e.g. {texts[0]}. Give their folder with --labels."
        )
    parsed = [list(_lines(t, len(names))) if t.is_file() else [] for t in texts]
    notes["images without a label file, read as empty"] += sum(not t.is_file() for t in texts)
    kinds = iter(_kinds([line for lines in parsed for line in lines], key_points, rows, notes))
    data: dict[str, Any] = {"images": [], "annotations": [], "categories": categories_of(names)}
    for number, (path, lines) in enumerate(zip(paths, parsed, strict=True), 1):
        width, height = picture_size(path)
        name = path.relative_to(root).as_posix()
        data["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        for line in lines:
            record = line.record(next(kinds), width, height)
            # Points on a line may get a tiny area from rounding.
            if record["area"] <= 1e-9 * record["bbox"][2] * record["bbox"][3]:
                notes["boxes without area skipped"] += 1
                continue
            data["annotations"].append({"id": len(data["annotations"]) + 1, "image_id": number, "iscrowd": 0, **record})
    return Converted(data, root, notes)


def _pictures(sources: Sequence[Path], notes: Counter[str]) -> list[Path]:
    """List images of folders and list files, without repeats."""
    out: dict[Path, None] = {}
    count = 0
    for source in sources:
        if source.is_dir():
            paths = pictures_in(source)
            if not paths:
                raise UserError(f"No images in {source} ({', '.join(IMAGE_SUFFIXES)}).")
        elif source.suffix == ".txt" and source.is_file():
            paths = _listed(source)
        else:
            raise UserError(f"No image folder at {source}.")
        count += len(paths)
        out.update(dict.fromkeys(paths))
    notes["images listed twice, used once"] += count - len(out)
    return list(out)


def _listed(source: Path) -> list[Path]:
    """Read a list of images, relative to the list's folder or one of its parents (as in Darknet)."""
    lines = [line.strip().replace("\\", "/") for line in read_text(source, "list of images").splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise UserError(f"{source} lists no images.")
    above = [source.parent, *list(source.absolute().parent.parents)[:3]]
    paths = [next((a / n for a in above if (a / n).is_file()), None) for n in names]
    refuse_lost((n for n, f in zip(names, paths, strict=True) if f is None), len(names), source.parent)
    return [Path(os.path.normpath(f)) for f in paths if f is not None]


def _label_file(picture: Path) -> Path:
    parts = list(picture.absolute().parts)
    if "images" not in parts[:-1]:
        raise UserError(
            f'{picture.parent} has no component named "images" to replace by "labels". Give the folder with --labels.'
        )
    last = len(parts) - 2 - parts[-2::-1].index("images")
    return Path(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt")


def _check_labels(labels: Path, images: Path, known: set[Path]) -> None:
    if not labels.is_dir():
        raise UserError(f"No label folder at {labels}. Give it with --labels.")
    lost = sorted(p for p in labels.rglob("*.txt") if p not in known and p.name != "classes.txt")
    if lost:
        raise UserError(f"{len(lost)} label files in {labels} have no image in {images}, e.g. {lost[0].name}.")


@dataclass(frozen=True)
class _Line:
    """One label: its location, its class, and the numbers after it."""

    where: str
    category: int
    values: tuple[float, ...]

    def box_inside(self, slack: float) -> bool:
        """Whether the first four numbers are a box inside the image."""
        cx, cy, w, h = self.values[:4]
        low, high = (cx - w / 2, cy - h / 2), (cx + w / 2, cy + h / 2)
        return w > 0 and h > 0 and min(low) >= -slack and max(high) <= 1 + slack

    def is_relative(self, count: int | None = None) -> bool:
        """Whether the first ``count`` numbers (None: all) are relative coordinates."""
        return all(math.isfinite(v) and -_SLACK <= v <= 1 + _SLACK for v in self.values[:count])

    def record(self, kind: str, width: int, height: int) -> dict[str, Any]:
        """Category, ``bbox`` (x, y, width, height in pixels), ``area`` and, for a polygon, ``segmentation``."""
        if not self.is_relative(4 if kind == "box" else None):
            raise UserError(f"{self.where}: coordinates must be relative to the image, 0 to 1: {self.values[:8]}.")
        if kind == "box":
            cx, cy, w, h = self.values[:4]
            if w < 0 or h < 0:
                raise UserError(f"{self.where}: width or height is negative: {self.values[:4]}.")
            box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
            return {"category_id": self.category + 1, "bbox": box, "area": box[2] * box[3]}
        polygon = [v * (height if i % 2 else width) for i, v in enumerate(self.values)]
        xs, ys = polygon[::2], polygon[1::2]
        box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        return {"category_id": self.category + 1, "bbox": box, "area": _area(xs, ys), "segmentation": [polygon]}


def _area(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Area of a polygon (shoelace formula)."""
    turned = zip(xs, [*ys[1:], ys[0]], [*xs[1:], xs[0]], ys, strict=True)
    return abs(sum(a * b - c * d for a, b, c, d in turned)) / 2


def _lines(path: Path, classes: int) -> Iterator[_Line]:
    for n, line in enumerate(read_text(path, "label file").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {n}"
        try:
            number, *values = [float(v) for v in line.split()]
        except ValueError as error:
            raise UserError(f"{where} has values that are not numbers: {line!r:.60}.") from error
        if not 0 <= number < classes or number != int(number):
            raise UserError(f"{where}: class {number:g} of {classes} (0 to {classes - 1}).")
        if len(values) < 4:
            raise UserError(
                f"{where} has {len(values)} coordinates: expected 4 for a box, or at least 3 points of a polygon."
            )
        yield _Line(where, int(number), tuple(values))


def _kinds(lines: Sequence[_Line], key_points: int, rows: str, notes: Counter[str]) -> list[str]:
    """Decide ``box`` or ``outline`` for each line of a set."""
    if key_points:
        kinds = [_pose(line, key_points) for line in lines]
        notes["boxes whose key points were dropped"] += sum(len(line.values) > 4 for line in lines)
        return kinds
    if rows == "boxes":
        kinds = ["box"] * len(lines)
    else:
        if rows == "auto" and _look_like_key_points(lines):
            raise UserError(
                f"{lines[0].where}: the labels look like boxes with key points. Write kpt_shape into "
                "data.yaml, or use --rows boxes, or --rows outlines if they are polygons."
            )
        kinds = [_kind(line, rows) for line in lines]
        kinds = _decided(lines, kinds)
    notes["boxes whose confidence or track id was dropped"] += sum(
        kind == "box" and len(line.values) > 4 for line, kind in zip(lines, kinds, strict=True)
    )
    return kinds


def _pose(line: _Line, key_points: int) -> str:
    # A confidence and a track id may follow the key points.
    if len(line.values) - 4 - key_points not in (0, 1, 2, -key_points):
        raise UserError(
            f"{line.where} has {len(line.values)} numbers after the class; expected 4 of a box and {key_points} of "
            "its key points (kpt_shape)."
        )
    return "box"


def _kind(line: _Line, rows: str) -> str:
    """``box``, ``outline``, or ``doubt`` for six numbers: a triangle, or a box with confidence and track id."""
    count = len(line.values)
    if count == 4 or (count == 5 and rows == "auto"):
        return "box"
    if count % 2:
        raise UserError(
            f"{line.where} has {count} numbers after the class: expected 4 of a box (5 or 6 with a confidence and a "
            "track id), or x and y of at least 3 points of a polygon. Key points need kpt_shape in "
            "data.yaml; --rows boxes reads the first four."
        )
    if count > 6 or rows == "outlines":
        return "outline"
    if not line.is_relative():
        return "box"
    return "doubt" if line.box_inside(_FAR) else "outline"


def _decided(lines: Sequence[_Line], kinds: Sequence[str]) -> list[str]:
    """Resolve lines of six numbers by the other lines of the set."""
    outlines = any(kind == "outline" for kind in kinds)
    boxes = any(kind == "box" and len(line.values) > 4 for line, kind in zip(lines, kinds, strict=True))
    doubtful = [line for line, kind in zip(lines, kinds, strict=True) if kind == "doubt"]
    # Track ids are integers; a set of triangles whose last corners are all on the image border is implausible.
    if not outlines:
        boxes = boxes or any(all(line.values[k] == int(line.values[k]) for line in doubtful) for k in (4, 5))
    if doubtful and outlines == boxes:
        raise UserError(
            f"{doubtful[0].where} has 6 numbers after the class, which may be 3 points of a polygon, or a box with "
            "a confidence and a track id. Use --rows outlines or --rows boxes."
        )
    return [kind if kind != "doubt" else "outline" if outlines else "box" for kind in kinds]


def _look_like_key_points(lines: Sequence[_Line]) -> bool:
    """Whether all lines have equal length, with points inside each box after it (x, y, or x, y, visibility)."""
    count = len(lines[0].values) if lines else 0
    if count < 8 or any(len(line.values) != count for line in lines):
        return False
    # One or two short polygons can match by chance; with three numbers per point, visibilities must be 0, 1 or 2.
    plane = (count - 4) % 2 == 0 and (len(lines) > 2 or count > 12) and all(_holds(line, 2) for line in lines)
    return plane or ((count - 4) % 3 == 0 and all(_holds(line, 3) for line in lines))


def _holds(line: _Line, step: int) -> bool:
    if not line.box_inside(_SLACK):
        return False
    cx, cy, w, h = line.values[:4]
    points = [line.values[i : i + step] for i in range(4, len(line.values), step)]
    if step == 3 and any(p[2] not in (0, 1, 2) for p in points):
        return False
    near = (w / 2 + _SLACK, h / 2 + _SLACK)
    # Unlabelled points are 0 0.
    return all((abs(p[0] - cx) <= near[0] and abs(p[1] - cy) <= near[1]) or (p[0], p[1]) == (0, 0) for p in points)
