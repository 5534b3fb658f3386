"""Write expressions in all layouts that can store them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path

from smartclip_det.core.errors import check_choice
from smartclip_det.core.words import EXPRESSION_LAYOUTS as LAYOUTS
from smartclip_det.formats.expressions.jsonl import write_expressions
from smartclip_det.formats.expressions.mdetr import mdetr_of
from smartclip_det.formats.expressions.odvg import odvg_of
from smartclip_det.formats.expressions.record import Expression
from smartclip_det.formats.expressions.refs import refs_of
from smartclip_det.formats.expressions.transvg import transvg_name, transvg_of
from smartclip_det.utils.files import write_whole


def write_layout(path: str | Path, expressions: Sequence[Expression], layout: str) -> dict[str, int]:
    """Write expressions; anything that a layout cannot store is an error, never dropped.

    Args:
        path: output file; for ``refs``, a folder that gets ``refs(own).p`` (as read by the refer toolbox),
            ``refs.json`` with the same content, and ``instances.json``; for ``transvg``, a name like ``unc_val.pth``.
        expressions: expressions to write.
        layout: output layout in :data:`LAYOUTS`.

    Returns:
        Counts of sentences.
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
        torch.save(transvg_of(expressions, *transvg_name(path)), part)
        part.replace(path)
    else:
        refs, instances = refs_of(expressions)
        write_whole(path / "refs.json", json.dumps(refs))
        # Protocol 2, as in the toolbox's own files.
        (path / "refs(own).p").write_bytes(pickle.dumps(refs, protocol=2))
        write_whole(path / "instances.json", json.dumps(instances))
    return {
        "sentences": len(expressions),
        "without_target": sum(not e.boxes for e in expressions),
        "many_targets": sum(len(e.boxes) > 1 for e in expressions),
    }
