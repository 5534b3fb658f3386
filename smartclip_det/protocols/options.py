"""The options of each protocol: typed, checked, with their defaults and what the command line says of them.

No torch and no numpy: the command line is made from this table.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError, check_choice, nearest
from smartclip_det.core.mask_modes import OLD_WORDS, RETRIEVAL_MODES, mask_mode
from smartclip_det.core.rules import (
    BACKENDS,
    BOX_FORMATS,
    BOX_RULES,
    COCO_LIMITS,
    DIFFICULT,
    GREC_OVERLAP,
    GREC_SCORE,
    IMAGES,
    IOU_TYPES,
    LVIS_LIMIT,
    NO_LIMIT,
    OVERLAPS,
    SCENARIOS,
    SETTINGS,
)


def told(about: str, choices: Sequence[str] = (), *, kind: type = str, fact: bool = True) -> dict[str, Any]:
    """What is said of an option.

    Args:
        about: help of the command line.
        choices: allowed texts.
        kind: type of the value.
        fact: whether it belongs into the stamp; paths and layouts of files do not.
    """
    return {"about": about, "choices": tuple(choices), "kind": kind, "fact": fact}


def option(default: Any, about: str, choices: Sequence[str] = (), *, fact: bool = True) -> Any:
    """An option whose type is that of its default, and see :func:`told`."""
    return field(default=default, metadata=told(about, choices, kind=type(default), fact=fact))


@dataclass(frozen=True)
class Options:
    """Options of a protocol; wrong values raise :class:`UserError`."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = self._read(f, getattr(self, f.name))
            object.__setattr__(self, f.name, value)

    def _read(self, f: Field[Any], value: Any) -> Any:
        kind, name = f.metadata["kind"], f.name
        if f.metadata["choices"]:
            return check_choice(name, value, f.metadata["choices"])
        if kind is Path:
            return Path(value) if value else None
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise UserError(f"{name} must be {_KINDS[kind]}; given {value!r}.")
        if kind is float and not math.isfinite(value):
            raise UserError(f"{name} must be a finite number; given {value!r}.")
        return value

    def facts(self) -> dict[str, Any]:
        """What the stamp tells."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.metadata["fact"]}


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


@dataclass(frozen=True)
class DetectionOptions(Options):
    """Of every protocol of detections."""

    backend: str = option(BACKENDS[0], "reference: pycocotools, lvis-api, MMDetection", BACKENDS)
    images: str = option(
        IMAGES[0], "annotated: those with a box of the protocol's classes; predicted: those of a run that died", IMAGES
    )


@dataclass(frozen=True)
class CocoOptions(DetectionOptions):
    """Of ``coco``."""

    iou_type: str = option(IOU_TYPES[0], "boxes or masks", IOU_TYPES)
    max_dets: int = option(
        COCO_LIMITS[-1],
        f"detections per image: COCO {COCO_LIMITS[-1]}, LVIS {LVIS_LIMIT}; LVIS also {NO_LIMIT}: no limit",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_dets < 1:
            raise UserError(
                f"max_dets={self.max_dets}: COCO protocols need a positive limit; only LVIS knows {NO_LIMIT}, no limit."
            )


@dataclass(frozen=True)
class OvCocoOptions(CocoOptions):
    """Of ``ov-coco``."""

    split_file: Path | None = field(
        default=None, metadata=told("json with base and novel names; default: the 48/17 split", kind=Path, fact=False)
    )
    setting: str = option(SETTINGS[0], "target-only: the detector was given the novel names alone", SETTINGS)


@dataclass(frozen=True)
class LvisOptions(DetectionOptions):
    """Of ``lvis`` and ``ov-lvis``."""

    iou_type: str = option(IOU_TYPES[0], "boxes or masks", IOU_TYPES)
    max_dets: int = option(LVIS_LIMIT, "detections per image")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_dets < 1 and self.max_dets != NO_LIMIT:
            raise UserError(f"max_dets={self.max_dets} must be positive, or {NO_LIMIT} for no limit.")


@dataclass(frozen=True)
class LvisFixedOptions(DetectionOptions):
    """Of ``lvis-fixed``, which has no limit per image and is of boxes."""


@dataclass(frozen=True)
class VocOptions(DetectionOptions):
    """Of ``voc``."""

    difficult: str = option(DIFFICULT[0], "difficult objects; ignore is the devkit's rule", DIFFICULT)


@dataclass(frozen=True)
class DcubeOptions(DetectionOptions):
    """Of ``dcube``."""

    scenario: str = option(SCENARIOS[0], "sentences asked of an image: its own, or all", SCENARIOS)


@dataclass(frozen=True)
class FgovdOptions(DetectionOptions):
    """Of ``fgovd``."""


@dataclass(frozen=True)
class SentenceOptions(Options):
    """Of every protocol whose unit is a sentence."""

    split: str = option("all", "train, val, testA, testB or test")
    instances: Path | None = field(
        default=None, metadata=told("instances.json of a refs file; default: beside it", kind=Path, fact=False)
    )

    def __post_init__(self) -> None:
        if not self.split:
            object.__setattr__(self, "split", "all")
        super().__post_init__()


@dataclass(frozen=True)
class BoxedSentenceOptions(SentenceOptions):
    """Of the protocols of boxes: ``ref-l4`` as it is."""

    box_format: str = option(BOX_FORMATS[0], "of the predictions", BOX_FORMATS, fact=False)


@dataclass(frozen=True)
class RefcocoOptions(BoxedSentenceOptions):
    """Of ``refcoco``."""

    overlap: str = option(OVERLAPS[0], f"refcoco {OVERLAPS[0]}, grefcoco {GREC_OVERLAP}", OVERLAPS)
    strict: bool = option(False, "hits need overlap > threshold")


@dataclass(frozen=True)
class GrefcocoOptions(BoxedSentenceOptions):
    """Of ``grefcoco``."""

    overlap: str = option(GREC_OVERLAP, "the released evaluator's", OVERLAPS)
    score_threshold: float = option(GREC_SCORE, "boxes below are not predicted")


@dataclass(frozen=True)
class FlickrOptions(BoxedSentenceOptions):
    """Of ``flickr``."""

    box_rule: str = option(BOX_RULES[0], "any box of a phrase, or the box around all of them", BOX_RULES)


@dataclass(frozen=True)
class RetrievalOptions(Options):
    """Of ``retrieval``."""

    scoring: str = option(
        "off", "mask mode that two files are compared by; one file is scored by all", RETRIEVAL_MODES, fact=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "scoring", mask_mode(self.scoring, RETRIEVAL_MODES, "scoring"))
        super().__post_init__()


#: In the order in which they are listed.
OPTIONS: dict[str, type[Options]] = {
    "coco": CocoOptions,
    "ov-coco": OvCocoOptions,
    "lvis": LvisOptions,
    "ov-lvis": LvisOptions,
    "lvis-fixed": LvisFixedOptions,
    "voc": VocOptions,
    "refcoco": RefcocoOptions,
    "grefcoco": GrefcocoOptions,
    "ref-l4": BoxedSentenceOptions,
    "flickr": FlickrOptions,
    "refseg": SentenceOptions,
    "grefseg": SentenceOptions,
    "dcube": DcubeOptions,
    "fgovd": FgovdOptions,
    "retrieval": RetrievalOptions,
}
#: The protocols of detections.
OF_DETECTIONS = tuple(n for n, kind in OPTIONS.items() if issubclass(kind, DetectionOptions))


def names_of(protocol: str) -> list[str]:
    """The options that a protocol takes."""
    return [f.name for f in fields(OPTIONS[check_choice("protocol", protocol, OPTIONS)])]


def options_of(protocol: str, given: Mapping[str, Any] | Options, *, flags: bool = False) -> Any:
    """The checked options of a protocol.

    Args:
        protocol: in :data:`OPTIONS`.
        given: values by name; what is left out, or None, has the protocol's default.
        flags: name options as the command line does.

    Raises:
        UserError: for options that the protocol does not take, telling which it takes and which do, and wrong values.
    """
    kind = OPTIONS[check_choice("protocol", protocol, OPTIONS)]
    if isinstance(given, Options):
        if type(given) is not kind:
            raise UserError(f"{protocol} takes {kind.__name__}; given {type(given).__name__}.")
        return given
    given = {k: v for k, v in given.items() if v is not None}
    known = names_of(protocol)
    foreign = [n for n in given if n not in known]
    if foreign:
        name = foreign[0]
        users = [p for p in OPTIONS if name in names_of(p)]
        near = nearest(name, known)
        hint = f" It is an option of {', '.join(users)}." if users else f" Nearest: {', '.join(near) or 'none'}."
        shown = [flag_of(n) if flags else n for n in (name, *known)]
        raise UserError(f"{protocol} has no option {shown[0]}.{hint} {protocol} takes: {', '.join(shown[1:])}.")
    return kind(**given)


def flag_of(name: str) -> str:
    """``--max-dets`` of ``max_dets``; a lowest score is ``--threshold`` in every verb."""
    return "--threshold" if name == "score_threshold" else f"--{name.replace('_', '-')}"


def add_protocol_options(parser: argparse.ArgumentParser) -> None:
    """The options of all protocols on a command line, each with the protocols that take it."""
    found: dict[str, tuple[list[str], Field[Any]]] = {}
    for protocol, kind in OPTIONS.items():
        for f in fields(kind):
            found.setdefault(f.name, ([], f))[0].append(protocol)
    for name, (users, f) in found.items():
        meta = f.metadata
        about = f"{meta['about']} ({', '.join(users)})"
        if meta["kind"] is bool:
            parser.add_argument(flag_of(name), dest=name, action="store_true", default=argparse.SUPPRESS, help=about)
        else:
            choices = [*meta["choices"], *OLD_WORDS] if name == "scoring" else meta["choices"] or None
            parser.add_argument(
                flag_of(name), dest=name, type=meta["kind"], choices=choices, default=argparse.SUPPRESS, help=about
            )


def given_options(protocol: str, args: argparse.Namespace) -> Any:
    """The options of a protocol from a parsed command line.

    Raises:
        UserError: for options of other protocols, and wrong values.
    """
    known = {f.name for kind in OPTIONS.values() for f in fields(kind)}
    return options_of(protocol, {k: v for k, v in vars(args).items() if k in known}, flags=True)
