"""Further layouts of referring expressions, and writers (rec reference 2.1 to 2.5).

``referring_files.load_expressions`` reads everything that is told here, too. Boxes are xyxy pixels inside.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.formats.expressions.files import Expression, write_expressions
from smartclip_det.utils.files import write_whole
from smartclip_det.utils.safe_load import safe_torch_load

LAYOUTS = ("jsonl", "mdetr", "odvg", "refs", "transvg")
#: Data sets of TransVG's files, and whether their boxes are xyxy (the others are xywh).
TRANSVG = {"unc": False, "unc+": False, "gref": False, "gref_umd": False, "referit": True, "flickr": True}


def read_transvg(path: str | Path) -> list[Expression]:
    """A TransVG split, ``<dataset>_<split>.pth``: a list of (file, size or id, box, phrase, attributes), nothing run.

    The COCO sets (unc, unc+, gref, gref_umd) hold xywh boxes, referit and flickr xyxy ones: the data set is read off
    the file's name. Flickr's tuples are (file, box, phrase).

    Raises:
        UserError: for a name without a known data set, or tuples of another form.
    """
    path = Path(path)
    name, split = _transvg_name(path)
    content = safe_torch_load(path)
    out = []
    for number, row in enumerate(content):
        try:
            file, box, phrase = (row[0], row[1], row[2]) if len(row) == 3 else (row[0], row[2], row[3])
            a, b, c, d = (float(v) for v in box)
        except (TypeError, ValueError, IndexError) as error:
            raise UserError(f"{path}: entry {number} is no (file, size, box, phrase, ...) tuple ({error}).") from error
        where = (a, b, c, d) if TRANSVG[name] else (a, b, a + c, b + d)
        out.append(Expression(number, str(file), str(file), str(phrase), (where,), split=split, dataset=name))
    return out


def _transvg_name(path: Path) -> tuple[str, str]:
    """Data set and split of ``unc+_testA.pth``."""
    name, _, split = path.stem.rpartition("_")
    if name not in TRANSVG:
        raise UserError(f"{path.name} names no TransVG data set; known: {', '.join(TRANSVG)} (as in unc+_testA.pth).")
    return name, split


def transvg_of(expressions: Sequence[Expression], name: str, split: str) -> list[tuple[Any, ...]]:
    """TransVG's tuples: (file, image id, box, phrase, attributes), for ``flickr`` (file, box, phrase).

    Raises:
        UserError: for what they cannot hold: none or several boxes, other splits, masks, categories.
    """
    odd = [e.id for e in expressions if len(e.boxes) != 1 or e.masks or e.category or e.split not in ("", split)]
    if odd:
        raise UserError(f"transvg holds one box a sentence, one split, and neither masks nor categories; {len(odd)} "
                        f"sentences have others, e.g. id {odd[0]!r}. Say --split {split}, or write jsonl.")  # fmt: skip
    rows: list[tuple[Any, ...]] = []
    for e in expressions:
        box = list(e.boxes[0]) if TRANSVG[name] else _xywh(e.boxes[0])
        rows.append(
            (e.file_name, box, e.sentence) if name == "flickr" else (e.file_name, e.image_id, box, e.sentence, [])
        )
    return rows


def read_odvg(path: str | Path) -> list[Expression]:
    """MMDetection's grounding lines: one expression for each region's phrase; a caption without regions means nothing.

    Raises:
        UserError: naming the line, for a record without ``grounding`` or a box that is not four numbers.
    """
    out: list[Expression] = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            asked = row["grounding"]["regions"]
            if not asked:
                size = (int(row["width"]), int(row["height"]))
                out.append(
                    Expression(len(out), row["filename"], row["filename"], row["grounding"]["caption"], (), *size)
                )
            for region in asked:
                found = region["bbox"] if isinstance(region["bbox"][0], list) else [region["bbox"]]
                boxes = tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in found)
                out.append(Expression(len(out), row["filename"], row["filename"], region["phrase"], boxes,
                                      int(row["width"]), int(row["height"])))  # fmt: skip
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"{path} line {number}: no ODVG grounding record ({error!r}).") from error
    return out


def write_layout(path: str | Path, expressions: Sequence[Expression], layout: str) -> dict[str, int]:
    """Write expressions; what a layout cannot hold is an error, never left out.

    Args:
        path: file; for ``refs`` a folder that gets ``refs(own).p`` (as the refer toolbox reads it), ``refs.json`` with
            the same content, and ``instances.json``; for ``transvg`` a name as ``unc_val.pth``.
        expressions: to write.
        layout: in :data:`LAYOUTS`.

    Returns:
        Counts of what was written.
    """
    check_choice("layout", layout, LAYOUTS)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if layout == "jsonl":
        write_expressions(path, expressions)
    elif layout == "mdetr":
        write_whole(path, json.dumps(mdetr_of(expressions)))
    elif layout == "odvg":
        write_whole(path, "".join(json.dumps(r) + "\n" for r in odvg_of(expressions)))
    elif layout == "transvg":
        import torch

        part = path.with_name(f"{path.name}.part")
        torch.save(transvg_of(expressions, *_transvg_name(path)), part)
        part.replace(path)
    else:
        refs, instances = refs_of(expressions)
        write_whole(path / "refs.json", json.dumps(refs))
        # The protocol of the toolbox's own files.
        (path / "refs(own).p").write_bytes(pickle.dumps(refs, protocol=2))
        write_whole(path / "instances.json", json.dumps(instances))
    return {"sentences": len(expressions), "without_target": sum(not e.boxes for e in expressions),
            "many_targets": sum(len(e.boxes) > 1 for e in expressions)}  # fmt: skip


def _sized(expressions: Sequence[Expression], layout: str) -> None:
    lacking = [e.id for e in expressions if not (e.width and e.height)]
    if lacking:
        raise UserError(f"{layout} needs image sizes; {len(lacking)} sentences have none, e.g. id {lacking[0]!r}.")


def _xywh(box: Sequence[float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def _category(expression: Expression) -> dict[str, str]:
    return {"category": expression.category} if expression.category else {}


def mdetr_of(expressions: Sequence[Expression]) -> dict[str, Any]:
    """MDETR's json: an image entry for each sentence; no target is one annotation marked ``empty`` (gRefCOCO)."""
    _sized(expressions, "mdetr")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    whole = all(isinstance(e.id, int) for e in expressions)
    for number, e in enumerate(expressions):
        n = e.id if whole else number
        images.append({"id": n, "file_name": e.file_name, "height": e.height, "width": e.width,
                       "original_id": e.image_id, "caption": e.sentence, "dataset_name": e.dataset,
                       "split": e.split, **_category(e)})  # fmt: skip
        for k, box in enumerate(e.boxes):
            x, y, w, h = _xywh(box)
            found: dict[str, Any] = {"id": len(annotations), "image_id": n, "category_id": 1, "bbox": [x, y, w, h],
                                     "area": w * h, "iscrowd": 0}  # fmt: skip
            if len(e.ann_ids) == len(e.boxes):
                found["original_id"] = e.ann_ids[k]
            if len(e.masks) == len(e.boxes):
                found["segmentation"] = e.masks[k]
            annotations.append(found)
        if not e.boxes:
            annotations.append({"id": len(annotations), "image_id": n, "category_id": -1, "bbox": [0, 0, 0, 0],
                                "area": -1, "iscrowd": -1, "empty": True})  # fmt: skip
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}


def odvg_of(expressions: Sequence[Expression]) -> list[dict[str, Any]]:
    """One grounding line for each sentence, also those without a target: MMDetection's own converter loses them.

    The layout has no place for ids, splits, masks and categories: several splits, masks, or categories are refused.
    """
    _sized(expressions, "odvg")
    splits = sorted({e.split for e in expressions})
    held = {"masks": any(e.masks for e in expressions), "categories": any(e.category for e in expressions),
            f"the splits {', '.join(splits)}": len(splits) > 1}  # fmt: skip
    lost = [what for what, there in held.items() if there]
    if lost:
        raise UserError(f"odvg cannot hold {' and '.join(lost)}; write one split at a time (--split), and keep masks "
                        "and categories in jsonl, mdetr or refs.")  # fmt: skip
    return [
        {"filename": e.file_name, "height": e.height, "width": e.width,
         "grounding": {"caption": e.sentence, "regions": [
             {"bbox": [list(b) for b in e.boxes] if len(e.boxes) > 1 else list(e.boxes[0]), "phrase": e.sentence,
              "tokens_positive": [[0, len(e.sentence)]]}] if e.boxes else []}}
        for e in expressions
    ]  # fmt: skip


def refs_of(expressions: Sequence[Expression]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The refer toolbox's refs list (as JSON) and ``instances.json``; none and many as in gRefCOCO."""
    images: dict[Any, dict[str, Any]] = {}
    annotations: dict[tuple[Any, tuple[float, ...]], dict[str, Any]] = {}
    refs: list[dict[str, Any]] = []
    for e in expressions:
        images.setdefault(
            e.image_id, {"id": e.image_id, "file_name": e.file_name, "width": e.width, "height": e.height}
        )  # fmt: skip
        ids = []
        for k, box in enumerate(e.boxes):
            key = (e.image_id, tuple(box))
            if key not in annotations:
                x, y, w, h = _xywh(box)
                annotations[key] = {"id": len(annotations) + 1, "image_id": e.image_id, "category_id": 1,
                                    "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}  # fmt: skip
                if len(e.masks) == len(e.boxes):
                    annotations[key]["segmentation"] = e.masks[k]
            ids.append(annotations[key]["id"])
        refs.append({"ref_id": len(refs), "ann_id": ids[0] if len(ids) == 1 else ids or [-1], "image_id": e.image_id,
                     "category_id": 1, "split": e.split, "file_name": e.file_name, "sent_ids": [e.id],
                     "sentences": [{"sent_id": e.id, "sent": e.sentence, "raw": e.sentence,
                                    "tokens": e.sentence.split()}], **_category(e)})  # fmt: skip
    instances: Mapping[str, Any] = {"images": list(images.values()), "annotations": list(annotations.values()),
                                    "categories": [{"id": 1, "name": "object"}]}  # fmt: skip
    return refs, dict(instances)
