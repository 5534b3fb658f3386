"""Referring expressions on disk: one record per sentence, from every layout of the RefCOCO family.

Read: our JSON lines, MDETR's ``finetune_*.json``, and the refer toolbox's ``refs(SPLIT).p`` (or its JSON copy)
with ``instances.json`` beside it. Pickles go through an unpickler that knows no classes at all.

Boxes are xyxy pixels here, whatever the file holds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.formats.detections import read_json
from smartclip_det.utils.safe_load import load_plain_pickle


@dataclass(frozen=True)
class Expression:
    """One sentence with the boxes it refers to.

    Attributes:
        id: sentence id (image entry id in MDETR files).
        image_id: COCO image id, or whatever names the image.
        file_name: image file, without the annotation id that refs files append.
        sentence: the text.
        boxes: xyxy boxes; none, one or many.
        width: image width in pixels, 0 if unknown.
        height: image height in pixels, 0 if unknown.
        split: train, val, testA, testB or test; empty if unknown.
        dataset: data set name, empty if unknown.
        ann_ids: source annotation ids.
        masks: COCO segmentation of each box (run lengths or polygons); empty where the file has none.
        category: class of the object as its data set names it, for class averages; empty if unknown.
    """

    id: int | str
    image_id: int | str
    file_name: str
    sentence: str
    boxes: tuple[tuple[float, float, float, float], ...]
    width: int = 0
    height: int = 0
    split: str = ""
    dataset: str = ""
    ann_ids: tuple[int, ...] = ()
    masks: tuple[Any, ...] = ()
    category: str = ""


def load_expressions(
    path: str | Path, *, split: str | None = None, instances: str | Path | None = None
) -> list[Expression]:
    """Read referring expressions; the layout is recognised by content.

    Args:
        path: ``.jsonl``, MDETR ``.json``, ``refs(...).p`` or its JSON copy.
        split: keep one split; an absent one is an error that lists what there is.
        instances: ``instances.json`` of a refs file; default: beside it.

    Raises:
        UserError: for files that are missing, broken or of another layout.
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        records = _from_jsonl(path)
    elif path.suffix in (".p", ".pkl", ".pickle"):
        records = _checked(_from_refs, path, load_plain_pickle(path), path, instances)
    else:
        data = read_json(path, "expression file")
        if isinstance(data, list):
            records = _checked(_from_refs, path, data, path, instances)
        elif (
            isinstance(data, dict) and isinstance(data.get("images"), list) and "caption" in (data["images"] or [{}])[0]
        ):
            records = _checked(_from_mdetr, path, data)
        else:
            raise UserError(
                f"{path} is neither an MDETR json (images with captions) nor a refs list. Known: JSON lines "
                "(.jsonl), MDETR json, refs(SPLIT).p with instances.json."
            )
    repeated = len(records) - len({r.id for r in records})
    if repeated:
        raise UserError(f"{path} repeats {repeated} sentence ids; predictions could not be matched.")
    if split is not None:
        found = sorted({r.split for r in records})
        # refclef holds compound names such as testAB.
        kept = [r for r in records if r.split == split or (split.startswith("test") and split in r.split)]
        if not kept:
            raise UserError(f"{path} has no split {split!r}. It has: {', '.join(found) or 'none'}.")
        records = kept
    return records


def _checked(read: Callable[..., list[Expression]], path: Path, *args: Any) -> list[Expression]:
    """Run a reader of one layout; a record that does not have the layout's fields is a :class:`UserError`."""
    try:
        return read(*args)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: a record does not have the layout's fields ({type(error).__name__}: {error})."
        ) from error


def write_expressions(path: str | Path, records: Iterable[Expression]) -> None:
    """Write our JSON lines."""
    Path(path).write_text("".join(json.dumps(asdict(r)) + "\n" for r in records), encoding="utf-8")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}).") from error


def _from_jsonl(path: Path) -> list[Expression]:
    if not path.is_file():
        raise UserError(f"No expression file at {path}. Check the path.")
    known = set(Expression.__dataclass_fields__)
    records = []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            boxes = tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in row["boxes"])
            extra = {k: v for k, v in row.items() if k in known and k not in ("boxes", "ann_ids", "masks")}
            extra = {"image_id": row.get("file_name", ""), "file_name": "", "sentence": "", **extra}
            lists: dict[str, Any] = {k: tuple(row.get(k, ())) for k in ("ann_ids", "masks")}
            records.append(Expression(boxes=boxes, **lists, **extra))
            hash(records[-1].id)
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} line {number}: not an expression with id and xyxy boxes ({error!r}).") from error
    return records


def _corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, w, h = (float(v) for v in box)
    return (x, y, x + w, y + h)


def _from_mdetr(data: dict[str, Any]) -> list[Expression]:
    boxes: dict[Any, list[dict[str, Any]]] = {}
    for a in data["annotations"]:
        # gRefCOCO writes "no target" as one annotation marked empty.
        if not (a.get("empty") or a.get("category_id") == -1):
            boxes.setdefault(a["image_id"], []).append(a)
    return [
        Expression(
            id=i["id"], image_id=i.get("original_id", i["id"]), file_name=i["file_name"], sentence=i["caption"],
            boxes=tuple(_corners(a["bbox"]) for a in boxes.get(i["id"], [])), width=int(i.get("width") or 0),
            height=int(i.get("height") or 0), dataset=i.get("dataset_name", ""), split=i.get("split", ""),
            category=i.get("category", ""),
            masks=_masks_of(boxes.get(i["id"], [])),
            ann_ids=tuple(a["original_id"] for a in boxes.get(i["id"], []) if "original_id" in a),
        )
        for i in data["images"]
    ]  # fmt: skip


def _masks_of(annotations: list[dict[str, Any]]) -> tuple[Any, ...]:
    """Segmentations where every annotation has one."""
    found = tuple(a["segmentation"] for a in annotations if a.get("segmentation"))
    return found if len(found) == len(annotations) else ()


def image_file_of(ref_file_name: str, ann_id: int) -> str:
    """The image file behind a refs file name: ``COCO_train2014_000000581857_16.jpg`` has an annotation counter."""
    stem, dot, suffix = ref_file_name.rpartition(".")
    parts = stem.split("_")
    return "_".join(parts[:-1]) + dot + suffix if len(parts) > 3 or (parts[-1] == str(ann_id)) else ref_file_name


def _targets(ref: dict[str, Any]) -> list[int]:
    """Annotation ids of a ref: one, or gRefCOCO's list, where [-1] says that nothing is meant."""
    ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
    return [i for i in ids if i != -1]


def _from_refs(refs: Any, path: Path, instances: str | Path | None) -> list[Expression]:
    if not isinstance(refs, list) or not all(isinstance(r, dict) and "sentences" in r for r in refs):
        raise UserError(f"{path} is no refs list: each entry needs sentences, ann_id and image_id.")
    source = Path(instances) if instances is not None else path.parent / "instances.json"
    if not source.is_file():
        raise UserError(f"{path} needs its boxes: no {source}. Give it with --instances.")
    data = read_json(source, "instances file")
    images = {i["id"]: i for i in data["images"]}
    annotations = {a["id"]: a for a in data["annotations"]}
    lost = [i for r in refs for i in _targets(r) if i not in annotations]
    if lost:
        raise UserError(f"{source} lacks {len(lost)} annotations that {path.name} refers to, e.g. {lost[0]}.")
    records = []
    for ref in refs:
        image = images.get(ref["image_id"], {})
        targets = [annotations[i] for i in _targets(ref)]
        name = image.get("file_name") or image_file_of(ref["file_name"], ref["ann_id"])
        for s in ref["sentences"]:
            records.append(Expression(
                id=s["sent_id"], image_id=ref["image_id"], file_name=name, sentence=s["sent"],
                boxes=tuple(_corners(a["bbox"]) for a in targets), width=int(image.get("width") or 0),
                height=int(image.get("height") or 0), split=ref.get("split", ""),
                ann_ids=tuple(a["id"] for a in targets), masks=_masks_of(targets), category=ref.get("category", ""),
            ))  # fmt: skip
    return records


@dataclass(frozen=True)
class GroundedBoxes:
    """Predicted boxes of one sentence, best first."""

    boxes: tuple[tuple[float, float, float, float], ...]
    scores: tuple[float, ...]


def load_grounding_predictions(path: str | Path, box_format: str = "xyxy") -> dict[int | str, GroundedBoxes]:
    """Read ``{"id", "boxes", "scores"}`` JSON lines; boxes are sorted by score, ties keep file order.

    Raises:
        UserError: naming the line, for broken JSON, a repeated id, NaN, or boxes and scores that do not fit.
    """
    check_choice("box_format", box_format, ("xyxy", "xywh"))
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No prediction file at {path}. Check the path.")
    out: dict[int | str, GroundedBoxes] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            key = row["id"]
            boxes = [tuple(float(v) for v in b) for b in row["boxes"]]
            scores = [float(s) for s in row.get("scores", [0.0] * len(boxes))]
            hash(key)
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} line {number}: not {{id, boxes, scores}} ({error!r}).") from error
        problem = _grounding_problem(key, boxes, scores, out, box_format)
        if problem:
            raise UserError(f"{path} line {number} (id {key!r}): {problem}")
        order = sorted(range(len(boxes)), key=lambda i: -scores[i])
        corners = [_corners(boxes[i]) if box_format == "xywh" else boxes[i] for i in order]
        out[key] = GroundedBoxes(tuple(corners), tuple(scores[i] for i in order))  # type: ignore[arg-type]
    return out


def _grounding_problem(key: Any, boxes: list[Any], scores: list[float], seen: dict[Any, Any], box_format: str) -> str:
    if key in seen:
        return "this id was given before."
    if len(boxes) != len(scores):
        return f"{len(boxes)} boxes but {len(scores)} scores."
    if any(len(b) != 4 for b in boxes):
        return "a box is not four numbers."
    if not all(math.isfinite(v) for b in boxes for v in b) or not all(map(math.isfinite, scores)):
        return "a number is not finite."
    if box_format == "xyxy" and any(b[2] < b[0] or b[3] < b[1] for b in boxes):
        return "x2 < x1 or y2 < y1: boxes must be [x1, y1, x2, y2]; for [x, y, width, height] say --box-format xywh."
    return ""
