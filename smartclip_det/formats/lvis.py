"""LVIS-specific fields of annotations."""

from __future__ import annotations

from smartclip_det.core.errors import UserError
from smartclip_det.formats.annotations import GroundTruth

#: Rare, common and frequent categories.
FREQUENCIES = ("r", "c", "f")


def check_lvis(truth: GroundTruth) -> None:
    """Raise an error for annotations without LVIS's federated fields."""
    for field in ("neg_category_ids", "not_exhaustive_category_ids"):
        missing = sum(field not in i for i in truth.data["images"])
        if missing:
            raise UserError(f"{truth.path}: {missing} images lack {field}; this is not an LVIS annotation file.")
    if any(c.get("frequency") not in FREQUENCIES for c in truth.data["categories"]):
        raise UserError(
            f"{truth.path}: categories lack their frequency (r, c or f); this is not an LVIS annotation file."
        )
