"""Base and novel classes of OV-COCO: the published split, or a custom one."""

from __future__ import annotations

from pathlib import Path

from smartclip_det.core.errors import UserError
from smartclip_det.core.vocabularies import OV_COCO_BASE, OV_COCO_NOVEL, check_split
from smartclip_det.formats.json_files import read_json


def ov_coco_split(split_file: str | Path | None) -> tuple[list[str], list[str], str]:
    """Return base and novel names and the name of the split: the published 48/17, or that of a file.

    Raises:
        UserError: for a file without two disjoint lists of names.
    """
    if split_file is None:
        return list(OV_COCO_BASE), list(OV_COCO_NOVEL), "ov_coco_48_17"
    data = read_json(split_file, "split file")
    if not isinstance(data, dict) or not {"base", "novel"} <= set(data):
        raise UserError(f'{split_file} must hold {{"base": [names], "novel": [names]}}.')
    for part in ("base", "novel"):
        if not isinstance(data[part], list) or not all(isinstance(n, str) for n in data[part]):
            raise UserError(f"{split_file}: {part} must be a list of names.")
    base, novel = data["base"], data["novel"]
    check_split(base, novel)
    return base, novel, Path(split_file).stem
