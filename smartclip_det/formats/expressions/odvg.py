"""MMDetection's ODVG layout of grounding lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.formats.expressions.record import Expression, check_sizes
from smartclip_det.formats.json_lines import read_json_lines


def read_odvg(path: str | Path) -> list[Expression]:
    """Read ODVG grounding lines: one expression per region phrase; a caption without regions has no target.

    Raises:
        UserError: naming the line, for a record without ``grounding`` or a box that is not four numbers.
    """
    out: list[Expression] = []
    for where, row in read_json_lines(path, "ODVG file"):
        try:
            regions = row["grounding"]["regions"]
            name, size = row["filename"], (int(row["width"]), int(row["height"]))
            if not regions:
                out.append(Expression(len(out), name, name, row["grounding"]["caption"], (), *size))
            for region in regions:
                coordinates = region["bbox"] if isinstance(region["bbox"][0], list) else [region["bbox"]]
                boxes = tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in coordinates)
                out.append(Expression(len(out), name, name, region["phrase"], boxes, *size))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"{where}: not an ODVG grounding record ({error!r}).") from error
    return out


def odvg_of(expressions: Sequence[Expression]) -> list[dict[str, Any]]:
    """Convert to one grounding line per sentence, including sentences without a target.

    (MMDetection's ``refcoco2odvg.py`` drops those.) The layout has no ids, splits, masks or categories: several splits,
    masks and categories are an error.
    """
    check_sizes(expressions, "odvg")
    splits = sorted({e.split for e in expressions})
    unsupported = {
        "masks": any(e.masks for e in expressions),
        "categories": any(e.category for e in expressions),
        f"the splits {', '.join(splits)}": len(splits) > 1,
    }
    lost = [what for what, there in unsupported.items() if there]
    if lost:
        raise UserError(
            f"odvg cannot store {' and '.join(lost)}; write one split at a time (--split), and use jsonl, mdetr "
            "or refs for "
            "masks and categories."
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
