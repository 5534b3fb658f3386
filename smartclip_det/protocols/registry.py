"""All protocols by name, for saved files and for runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smartclip_det.core.errors import check_choice
from smartclip_det.protocols.base import Evaluation, Protocol
from smartclip_det.protocols.detection import Coco, Dcube, Detections, Fgovd, Lvis, LvisFixed, OvCoco, Voc
from smartclip_det.protocols.options import OPTIONS, SentenceOptions, options_of
from smartclip_det.protocols.retrieval import Retrieval
from smartclip_det.protocols.sentences import Flickr, Grefcoco, Grefseg, Masks, Refcoco, RefL4, Refseg

_KINDS: dict[str, type[Protocol[Any]]] = {
    "coco": Coco,
    "ov-coco": OvCoco,
    "lvis": Lvis,
    "ov-lvis": Lvis,
    "lvis-fixed": LvisFixed,
    "voc": Voc,
    "refcoco": Refcoco,
    "grefcoco": Grefcoco,
    "ref-l4": RefL4,
    "flickr": Flickr,
    "refseg": Refseg,
    "grefseg": Grefseg,
    "dcube": Dcube,
    "fgovd": Fgovd,
    "retrieval": Retrieval,
}
PROTOCOLS: dict[str, Protocol[Any]] = {name: _KINDS[name](name) for name in OPTIONS}
#: Protocols over detections (boxes or masks with class and score), for detection runs.
OF_DETECTIONS = {n: p for n, p in PROTOCOLS.items() if isinstance(p, Detections)}
#: Protocols over sentences (boxes or masks), for grounding runs.
OF_SENTENCES = tuple(n for n, kind in OPTIONS.items() if issubclass(kind, SentenceOptions))
OF_MASKS = tuple(n for n in OF_SENTENCES if isinstance(PROTOCOLS[n], Masks))


def protocol_of(name: str) -> Protocol[Any]:
    """Return a protocol; the error for an unknown name lists the nearest ones."""
    return PROTOCOLS[check_choice("protocol", name, PROTOCOLS)]


def evaluate(protocol: str, ann: str | Path, pred: str | Path, **options: Any) -> Evaluation:
    """Score one prediction file.

    Args:
        protocol: one of :data:`PROTOCOLS`.
        ann: annotation file, or a folder for protocols that accept one.
        pred: prediction file.
        options: options of the protocol, see ``protocols.options``.

    Raises:
        UserError: for unknown protocols and options, and invalid files.
    """
    return protocol_of(protocol).evaluate(ann, pred, options_of(protocol, options))


def compare(
    protocol: str,
    ann: str | Path,
    first: str | Path,
    second: str | Path,
    *,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Paired bootstrap over images between two prediction files: the stamp, and the result for each metric."""
    return protocol_of(protocol).compare(
        ann, first, second, options_of(protocol, options), resamples=resamples, seed=seed, progress=progress
    )
