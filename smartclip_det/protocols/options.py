"""Typed and validated options of the protocols, with their defaults and command-line help.

Imports neither torch nor numpy, because command-line parsers are built from this table.
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


def described(about: str, choices: Sequence[str] = (), *, kind: type = str, fact: bool = True) -> dict[str, Any]:
    """Field metadata of an option.

    Args:
        about: command-line help.
        choices: allowed values.
        kind: type of the value.
        fact: whether the option is part of the stamp; paths and file layouts are not.
    """
    return {"about": about, "choices": tuple(choices), "kind": kind, "fact": fact}


def option(default: Any, about: str, choices: Sequence[str] = (), *, fact: bool = True) -> Any:
    """An option with the type of its default; for the arguments, see :func:`described`."""
    return field(default=default, metadata=described(about, choices, kind=type(default), fact=fact))


@dataclass(frozen=True)
class Options:
    """Options of a protocol; invalid values raise :class:`UserError`."""

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
        """Options for the stamp."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.metadata["fact"]}


_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


@dataclass(frozen=True)
class DetectionOptions(Options):
    """Options of all detection protocols."""

    backend: str = option(BACKENDS[0], "reference: pycocotools, lvis-api, MMDetection", BACKENDS)
    images: str = option(
        IMAGES[0],
        "annotated: those with a box of the protocol's classes; predicted: those of an interrupted run",
        IMAGES,
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
                f"max_dets={self.max_dets}: COCO protocols need a positive limit; only LVIS accepts {NO_LIMIT} (none)."
            )


@dataclass(frozen=True)
class OvCocoOptions(CocoOptions):
    """Options of ``ov-coco``."""

    split_file: Path | None = field(
        default=None,
        metadata=described("JSON with base and novel names; default: the 48/17 split", kind=Path, fact=False),
    )
    setting: str = option(SETTINGS[0], "target-only: the detector was given only the novel names", SETTINGS)


@dataclass(frozen=True)
class LvisOptions(DetectionOptions):
    """Options of ``lvis`` and ``ov-lvis``."""

    iou_type: str = option(IOU_TYPES[0], "boxes or masks", IOU_TYPES)
    max_dets: int = option(LVIS_LIMIT, "detections per image")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_dets < 1 and self.max_dets != NO_LIMIT:
            raise UserError(f"max_dets={self.max_dets} must be positive, or {NO_LIMIT} for no limit.")


@dataclass(frozen=True)
class LvisFixedOptions(DetectionOptions):
    """Options of ``lvis-fixed``, which is for boxes and has no limit per image."""


@dataclass(frozen=True)
class VocOptions(DetectionOptions):
    """Of ``voc``."""

    difficult: str = option(DIFFICULT[0], "difficult objects; ignore is the devkit's rule", DIFFICULT)


@dataclass(frozen=True)
class DcubeOptions(DetectionOptions):
    """Of ``dcube``."""

    scenario: str = option(SCENARIOS[0], "sentences scored on an image: its own, or all", SCENARIOS)


@dataclass(frozen=True)
class FgovdOptions(DetectionOptions):
    """Of ``fgovd``."""


@dataclass(frozen=True)
class SentenceOptions(Options):
    """Options of all protocols over sentences."""

    split: str = option("all", "train, val, testA, testB or test")
    instances: Path | None = field(
        default=None, metadata=described("instances.json of a refs file; default: next to it", kind=Path, fact=False)
    )

    def __post_init__(self) -> None:
        if not self.split:
            object.__setattr__(self, "split", "all")
        super().__post_init__()


@dataclass(frozen=True)
class BoxedSentenceOptions(SentenceOptions):
    """Options of the box protocols; ``ref-l4`` has no others."""

    box_format: str = option(BOX_FORMATS[0], "box format of the predictions", BOX_FORMATS, fact=False)


@dataclass(frozen=True)
class RefcocoOptions(BoxedSentenceOptions):
    """Of ``refcoco``."""

    overlap: str = option(OVERLAPS[0], f"overlap measure; refcoco {OVERLAPS[0]}, grefcoco {GREC_OVERLAP}", OVERLAPS)
    strict: bool = option(False, "hits need overlap > threshold")


@dataclass(frozen=True)
class GrefcocoOptions(BoxedSentenceOptions):
    """Of ``grefcoco``."""

    overlap: str = option(GREC_OVERLAP, "overlap measure; default: the released evaluator's", OVERLAPS)
    score_threshold: float = option(GREC_SCORE, "boxes with lower scores are dropped")


@dataclass(frozen=True)
class FlickrOptions(BoxedSentenceOptions):
    """Of ``flickr``."""

    box_rule: str = option(BOX_RULES[0], "any box of a phrase, or the box around all of them", BOX_RULES)


@dataclass(frozen=True)
class RetrievalOptions(Options):
    """Of ``retrieval``."""

    scoring: str = option(
        "off", "mask mode for comparing two files; a single file is scored with all modes", RETRIEVAL_MODES, fact=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "scoring", mask_mode(self.scoring, RETRIEVAL_MODES, "scoring"))
        super().__post_init__()


#: In display order.
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
#: Detection protocols.
OF_DETECTIONS = tuple(n for n, kind in OPTIONS.items() if issubclass(kind, DetectionOptions))


def names_of(protocol: str) -> list[str]:
    """Names of a protocol's options."""
    return [f.name for f in fields(OPTIONS[check_choice("protocol", protocol, OPTIONS)])]


def options_of(protocol: str, given: Mapping[str, Any] | Options, *, flags: bool = False) -> Any:
    """Validated options of a protocol.

    Args:
        protocol: one of :data:`OPTIONS`.
        given: values by name; missing values and None mean the protocol's default.
        flags: use command-line spelling in messages.

    Raises:
        UserError: for invalid values, and for options that the protocol does not have; the message lists its options
            and the protocols that have the given one.
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
    """``--max-dets`` for ``max_dets``; score thresholds are ``--threshold`` in every verb."""
    return "--threshold" if name == "score_threshold" else f"--{name.replace('_', '-')}"


def add_protocol_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of all protocols to a parser; each help text lists the protocols that have the option."""
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
    """Options of a protocol from parsed arguments.

    Raises:
        UserError: for options of other protocols, and invalid values.
    """
    known = {f.name for kind in OPTIONS.values() for f in fields(kind)}
    return options_of(protocol, {k: v for k, v in vars(args).items() if k in known}, flags=True)
