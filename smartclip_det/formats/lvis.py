"""What LVIS annotations have beyond COCO's."""

from __future__ import annotations

from smartclip_det.core.errors import UserError
from smartclip_det.formats.annotations import GroundTruth

#: Rare, common, frequent.
FREQUENCIES = ("r", "c", "f")


def check_lvis(truth: GroundTruth) -> None:
    """Refuse annotations without the federated fields."""
    for field in ("neg_category_ids", "not_exhaustive_category_ids"):
        lacking = sum(field not in i for i in truth.data["images"])
        if lacking:
            raise UserError(f"{truth.path}: {lacking} images lack {field}; this is no LVIS annotation file.")
    if any(c.get("frequency") not in FREQUENCIES for c in truth.data["categories"]):
        raise UserError(f"{truth.path}: categories lack their frequency (r, c or f); this is no LVIS annotation file.")
