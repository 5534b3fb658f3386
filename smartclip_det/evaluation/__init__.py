"""The old import paths of readers and metrics, for one version: they are in ``formats``, ``metrics``, ``probing`` now.

``from smartclip_det.evaluation.caption_files import read_caption_records`` works as before, with a DeprecationWarning.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from types import ModuleType
from typing import Any

#: Old module to the new ones that hold its names.
_MOVED = {
    "bootstrap": ("metrics.bootstrap",),
    "caption_files": ("formats.captions",),
    "caption_protocols": ("formats.caption_sets",),
    "classification": ("formats.labelled_images", "metrics.classification"),
    "coco": ("metrics.coco",),
    "described_objects": ("metrics.described_objects", "formats.expressions.fgovd"),
    "detection_columns": ("formats.columns",),
    "detection_files": ("formats.annotations", "formats.predictions", "formats.json_files", "formats.boxes"),
    "generalized_referring": ("metrics.generalized_referring", "formats.segmentations"),
    "grounding": ("formats.candidates", "metrics.referring"),
    "lvis": ("metrics.lvis", "formats.lvis"),
    "mask_statistics": ("probing.mask_statistics",),
    "metrics": ("protocols.detection_metric",),
    "referring": ("metrics.referring", "formats.expressions.predictions"),
    "referring_counts": ("formats.expressions.counts",),
    "referring_files": (
        "formats.expressions.record",
        "formats.expressions.loading",
        "formats.expressions.jsonl",
        "formats.expressions.predictions",
    ),
    "referring_layouts": (
        "formats.expressions.transvg",
        "formats.expressions.odvg",
        "formats.expressions.writing",
        "formats.expressions.mdetr",
        "formats.expressions.refs",
    ),
    "referring_metric": ("protocols.referring_metric",),
    "region_probe": ("probing.region_probe",),
    "retrieval": ("metrics.retrieval",),
    "retrieval_files": ("formats.retrieval_vectors", "metrics.retrieval"),
    "shards": ("formats.shards",),
    "stamp": ("protocols.stamp",),
    "voc": ("metrics.voc", "formats.voc"),
    "vocabulary_report": ("probing.vocabulary_report",),
}


class _Moved(ModuleType):
    """An old module: each name is looked up where it is now."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        for room in _MOVED[self.__name__.rpartition(".")[2]]:
            module = import_module(f"smartclip_det.{room}")
            if hasattr(module, name):
                warnings.warn(
                    f"{self.__name__}.{name} is smartclip_det.{room}.{name} now.", DeprecationWarning, stacklevel=2
                )
                return getattr(module, name)
        raise AttributeError(f"{self.__name__} had or has no {name!r}.")


for _name in _MOVED:
    _module = _Moved(f"{__name__}.{_name}")
    sys.modules[_module.__name__] = globals()[_name] = _module
