"""Per-class score thresholds, chosen on a few labelled images: a small file used by ``demo`` and ``label``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.formats.json_files import read_json
from smartclip_det.utils.files import write_whole
from smartclip_det.utils.notes import note

KIND = "smartclip_det.thresholds/1"


@dataclass(frozen=True)
class Thresholds:
    """Score thresholds per class.

    Attributes:
        by_name: threshold of each class, in [0, 1].
        default: threshold of other classes.
        facts: how the thresholds were chosen.
    """

    by_name: Mapping[str, float]
    default: float
    facts: Mapping[str, Any]

    def of(self, names: Sequence[str], where: str = "The thresholds") -> dict[str, float]:
        """Return the threshold of each name; names that use the default are reported."""
        without = [n for n in names if n not in self.by_name]
        if without:
            note(
                f"{where}: {len(without)} of {len(names)} names have no threshold of their own and use "
                f"{self.default:g} (first: {without[0]})."
            )
        return {n: float(self.by_name.get(n, self.default)) for n in names}

    def write(self, path: str | Path) -> Path:
        """Write the file."""
        content = {"kind": KIND, "default": self.default, "thresholds": dict(self.by_name), **self.facts}
        return write_whole(path, json.dumps(content, indent=2, default=str) + "\n")


def read_thresholds(path: str | Path) -> Thresholds:
    """Read a file written by ``smartclip-det calibrate``.

    Raises:
        UserError: for another file, and for values outside [0, 1].
    """
    data = read_json(path, "file of thresholds")
    if not isinstance(data, Mapping) or data.get("kind") != KIND:
        raise UserError(f"{path} is not a thresholds file. Use smartclip-det calibrate to make one.")
    thresholds = data.get("thresholds")
    values = [data.get("default"), *(thresholds.values() if isinstance(thresholds, Mapping) else [None])]
    if any(isinstance(v, bool) or not isinstance(v, int | float) or not 0 <= v <= 1 for v in values):
        raise UserError(f"{path}: thresholds must be numbers in [0, 1].")
    facts = {k: v for k, v in data.items() if k not in ("kind", "default", "thresholds")}
    return Thresholds(dict(data["thresholds"]), float(data["default"]), facts)
