"""Ref-L4 (arXiv 2406.16866): accuracy by object size and averaged over classes.

Shape letters: N sentences.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from smartclip_det.core.errors import UserError
from smartclip_det.formats.expressions.record import Expression
from smartclip_det.metrics.referring import referring_metrics

#: Object sides (square root of width x height, pixels) from which an object is medium, and above which it is large.
SIZES = (128, 256)
#: COCO classes (``refcoco_N``) merged into classes of Objects365 (``o365_N``) in the benchmark's class average.
#: Several COCO classes map to one. Classes that are not listed are not merged.
_COCO_TO_OBJECTS365 = """
1:1 2:47 3:6 4:59 5:115 6:56 7:117 8:66 9:22 10:41 11:177 13:128 14:250 15:25 16:56 17:140 18:93 19:79 20:100 21:97
22:145 23:296 24:179 25:181 27:39 28:40 31:13 32:44 33:194 34:220 35:119 36:174 38:155 39:138 40:114 41:146 42:147
43:205 44:9 46:36 47:11 48:89 49:85 50:94 51:26 52:113 53:83 54:266 55:104 56:142 57:153 58:235 59:144 60:151 61:98
62:3 63:51 64:26 65:76 67:98 70:154 72:37 73:74 74:116 75:133 76:107 77:62 78:164 79:135 80:278 81:82 82:134 84:19
85:95 86:31 87:170 88:70 89:328 90:227
"""
CLASSES = {f"refcoco_{a}": f"o365_{b}" for a, b in (pair.split(":") for pair in _COCO_TO_OBJECTS365.split())}


def ref_l4_metrics(truth: Sequence[Expression], overlap: np.ndarray) -> dict[str, float]:
    """Accuracies as fractions: over all sentences, by object size, and averaged over classes; -1 for an empty size.

    A hit requires an IoU strictly above the threshold (as in the benchmark's evaluator).

    Args:
        truth: N sentences with one box and a category each.
        overlap: ``[N]`` IoU of the best-scored box with the target.

    Raises:
        UserError: for sentences without a category.
    """
    bare = [e.id for e in truth if not e.category]
    if bare:
        raise UserError(
            f"{len(bare)} sentences have no category (e.g. id {bare[0]!r}); ref-l4 averages over categories. Convert "
            "the benchmark's parquet files with tools/data/convert_grounding.py, or use the refcoco protocol."
        )
    out = referring_metrics(overlap, strict=True)
    sides = np.array([((e.boxes[0][2] - e.boxes[0][0]) * (e.boxes[0][3] - e.boxes[0][1])) ** 0.5 for e in truth])
    of_size = {
        "small": sides < SIZES[0],
        "medium": (sides >= SIZES[0]) & (sides <= SIZES[1]),
        "large": sides > SIZES[1],
    }
    for name, members in of_size.items():
        found = referring_metrics(overlap[members], strict=True)
        out |= {f"{key}_{name}": found[key] for key in ("acc50", "acc_mean")}
    classes = np.array([CLASSES.get(e.category, e.category) for e in truth])
    by_class = [referring_metrics(overlap[classes == c], strict=True) for c in np.unique(classes)]
    for key in ("acc50", "acc_mean"):
        out[f"{key}_class_average"] = float(np.mean([m[key] for m in by_class])) if by_class else -1.0
    return out
