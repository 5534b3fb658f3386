"""MMDetection's grounding lines (ODVG)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.formats.expressions.record import Expression, check_sizes
from smartclip_det.formats.json_lines import read_json_lines


def read_odvg(path: str | Path) -> list[Expression]:
    """MMDetection's grounding lines: one expression for each region's phrase; a caption without regions means nothing.

    Raises:
        UserError: naming the line, for a record without ``grounding`` or a box that is not four numbers.
    """
    out: list[Expression] = []
    for where, row in read_json_lines(path, "ODVG file"):
        try:
            asked = row["grounding"]["regions"]
            name, size = row["filename"], (int(row["width"]), int(row["height"]))
            if not asked:
                out.append(Expression(len(out), name, name, row["grounding"]["caption"], (), *size))
            for region in asked:
                found = region["bbox"] if isinstance(region["bbox"][0], list) else [region["bbox"]]
                boxes = tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in found)
                out.append(Expression(len(out), name, name, region["phrase"], boxes, *size))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"{where}: no ODVG grounding record ({error!r}).") from error
    return out


def odvg_of(expressions: Sequence[Expression]) -> list[dict[str, Any]]:
    """One grounding line for each sentence, also those without a target: MMDetection's own converter loses them.

    The layout has no place for ids, splits, masks and categories: several splits, masks, or categories are refused.
    """
    check_sizes(expressions, "odvg")
    splits = sorted({e.split for e in expressions})
    held = {
        "masks": any(e.masks for e in expressions),
        "categories": any(e.category for e in expressions),
        f"the splits {', '.join(splits)}": len(splits) > 1,
    }
    lost = [what for what, there in held.items() if there]
    if lost:
        raise UserError(
            f"odvg cannot hold {' and '.join(lost)}; write one split at a time (--split), and keep masks "
            "and categories in jsonl, mdetr or refs."
        )
    return [
        {
            "filename": e.file_name,
            "height": e.height,
            "width": e.width,
            "grounding": {
                "caption": e.sentence,
                "regions": [
                    {
                        "bbox": [list(b) for b in e.boxes] if len(e.boxes) > 1 else list(e.boxes[0]),
                        "phrase": e.sentence,
                        "tokens_positive": [[0, len(e.sentence)]],
                    }
                ]
                if e.boxes
                else [],
            },
        }
        for e in expressions
    ]
