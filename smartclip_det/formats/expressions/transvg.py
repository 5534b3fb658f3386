"""TransVG's ``<dataset>_<split>.pth``: lists of tuples, read without executing code in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.formats.expressions.record import Expression
from smartclip_det.utils.boxes import to_xywh, to_xyxy
from smartclip_det.utils.safe_load import safe_torch_load

#: TransVG data set -> whether its boxes are xyxy (else xywh).
TRANSVG = {"unc": False, "unc+": False, "gref": False, "gref_umd": False, "referit": True, "flickr": True}


def read_transvg(path: str | Path) -> list[Expression]:
    """Read a TransVG split, ``<dataset>_<split>.pth``: a list of (file, size or id, box, phrase, attributes).

    The COCO sets (unc, unc+, gref, gref_umd) have xywh boxes, referit and flickr xyxy boxes, so the data set is taken
    from the file name. Flickr's tuples are (file, box, phrase).

    Raises:
        UserError: for a file name without a known data set, or malformed tuples.
    """
    path = Path(path)
    name, split = transvg_name(path)
    content = safe_torch_load(path)
    out = []
    for number, row in enumerate(content):
        try:
            file, box, phrase = (row[0], row[1], row[2]) if len(row) == 3 else (row[0], row[2], row[3])
            a, b, c, d = (float(v) for v in box)
        except (TypeError, ValueError, IndexError) as error:
            raise UserError(
                f"{path}: entry {number} is not a (file, size, box, phrase, ...) tuple ({error})."
            ) from error
        where = (a, b, c, d) if TRANSVG[name] else to_xyxy((a, b, c, d))
        out.append(Expression(number, str(file), str(file), str(phrase), (where,), split=split, dataset=name))
    return out


def transvg_name(path: Path) -> tuple[str, str]:
    """Parse data set and split from a name like ``unc+_testA.pth``."""
    name, _, split = path.stem.rpartition("_")
    if name not in TRANSVG:
        raise UserError(
            f"{path.name} does not name a TransVG data set; known: {', '.join(TRANSVG)} (as in unc+_testA.pth)."
        )
    return name, split


def transvg_of(expressions: Sequence[Expression], name: str, split: str) -> list[tuple[Any, ...]]:
    """Convert to TransVG's tuples: (file, image id, box, phrase, attributes); (file, box, phrase) for ``flickr``.

    Raises:
        UserError: for what they cannot store: no or several boxes, other splits, masks, categories.
    """
    odd = [e.id for e in expressions if len(e.boxes) != 1 or e.masks or e.category or e.split not in ("", split)]
    if odd:
        raise UserError(
            f"transvg stores one box per sentence, one split, and neither masks nor categories; {len(odd)} "
            f"sentences differ, e.g. id {odd[0]!r}. Use --split {split}, or write jsonl."
        )
    rows: list[tuple[Any, ...]] = []
    for e in expressions:
        box = list(e.boxes[0] if TRANSVG[name] else to_xywh(e.boxes[0]))
        rows.append(
            (e.file_name, box, e.sentence) if name == "flickr" else (e.file_name, e.image_id, box, e.sentence, [])
        )
    return rows
