"""Our JSON lines layout of expressions, one record per line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.formats.expressions.check import check_expression
from smartclip_det.formats.expressions.record import Expression
from smartclip_det.formats.json_lines import read_json_lines
from smartclip_det.utils.files import write_whole

#: Keys of the sentence in other layouts.
_OTHER_NAMES = (
    "caption",
    "captions",
    "sentences",
    "sent",
    "raw",
    "text",
    "phrase",
    "expression",
    "refexp",
    "query",
    "description",
)


def read_expression_lines(path: Path) -> list[Expression]:
    """Read expressions in our JSON lines layout.

    Raises:
        UserError: naming the line, for a record without id or valid boxes, and for what ``check`` rejects.
    """
    known = set(Expression.__dataclass_fields__)
    records = []
    for where, row in read_json_lines(path, "expression file"):
        other = [k for k in _OTHER_NAMES if isinstance(row, dict) and k in row]
        if other and "sentence" not in row:
            raise UserError(
                f'{where} (id {row.get("id")!r}): the text has the key {other[0]!r}; rename it to "sentence".'
            )
        try:
            boxes = tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in row["boxes"])
            extra = {k: v for k, v in row.items() if k in known and k not in ("boxes", "ann_ids", "masks")}
            extra = {"image_id": row.get("file_name", ""), "file_name": "", "sentence": "", **extra}
            lists: dict[str, Any] = {k: tuple(row.get(k, ())) for k in ("ann_ids", "masks")}
            records.append(Expression(boxes=boxes, **lists, **extra))
            hash(records[-1].id)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{where}: not an expression with id and xyxy boxes ({error!r}).") from error
        check_expression(records[-1], where, needs_sentence=False)
    return records


def write_expressions(path: str | Path, records: Iterable[Expression]) -> None:
    """Write expressions in our JSON lines layout."""
    write_whole(path, "".join(json.dumps(asdict(r)) + "\n" for r in records))
