"""Lowest scores by class, chosen on a few labelled pictures: one small file that ``demo`` and ``label`` take."""

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
    """Lowest scores.

    Attributes:
        by_name: of each class, in [0, 1].
        default: of classes that have none.
        facts: how they were chosen.
    """

    by_name: Mapping[str, float]
    default: float
    facts: Mapping[str, Any]

    def of(self, names: Sequence[str], where: str = "The thresholds") -> dict[str, float]:
        """One for each of the names; those that take the default are told."""
        without = [n for n in names if n not in self.by_name]
        if without:
            note(
                f"{where}: {len(without)} of {len(names)} names have no threshold of their own and take "
                f"{self.default:g} (first: {without[0]})."
            )
        return {n: float(self.by_name.get(n, self.default)) for n in names}

    def write(self, path: str | Path) -> Path:
        """Write the file."""
        content = {"kind": KIND, "default": self.default, "thresholds": dict(self.by_name), **self.facts}
        return write_whole(path, json.dumps(content, indent=2, default=str) + "\n")


def read_thresholds(path: str | Path) -> Thresholds:
    """What ``smartclip-det calibrate`` wrote.

    Raises:
        UserError: for another file, and for numbers that are no scores.
    """
    data = read_json(path, "file of thresholds")
    if not isinstance(data, Mapping) or data.get("kind") != KIND:
        raise UserError(f"{path} is no file of thresholds. smartclip-det calibrate writes them.")
    found = data.get("thresholds")
    values = [data.get("default"), *(found.values() if isinstance(found, Mapping) else [None])]
    if any(isinstance(v, bool) or not isinstance(v, int | float) or not 0 <= v <= 1 for v in values):
        raise UserError(f"{path}: thresholds must be numbers in [0, 1].")
    facts = {k: v for k, v in data.items() if k not in ("kind", "default", "thresholds")}
    return Thresholds(dict(data["thresholds"]), float(data["default"]), facts)
