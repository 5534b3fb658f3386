"""Options of :class:`CaptionDataset`: images, training texts, and tests."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.utils.images import FITS

T = TypeVar("T")


def _check_chance(name: str, value: Any) -> None:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"{name} must be a probability in [0, 1]; given {value!r}.")


@dataclass(frozen=True)
class ImageOptions:
    """Location and preparation of the images.

    Attributes:
        folder: folder of image paths, relative to the data root.
        size: S, the side of the square in pixels.
        fit: how an image is made square, see ``utils.images.fit_square``.
        flip: probability in training of mirroring an image and swapping left and right in its texts.
        exact_decode: decode images at full size in training too, as tests do; see ``utils.images.read_square``.
        keep: cache prepared images in memory (3 S^2 bytes each).
        cache: folder of prepared images, made by ``smartclip-det data cache-images``.
    """

    folder: str = ""
    size: int = 224
    fit: str = "crop"
    flip: float = 0.0
    exact_decode: bool = False
    keep: bool = False
    cache: str | None = None

    def __post_init__(self) -> None:
        check_choice("images.fit", self.fit, FITS)
        _check_chance("images.flip", self.flip)


@dataclass(frozen=True)
class TextOptions:
    """Training texts of an image.

    Attributes:
        policy: how a text is drawn, see ``caption_policies.policies_of``.
        per_image: number of texts drawn per image and step; each set of B texts is one contrast, and the image is
            encoded once for all of them.
        left_pad: probability of padding a text on the left, see ``caption_policies.pad_left``.
        context_length: context length of the text tower, to tokenise in the workers. 0: the model tokenises.
    """

    policy: str | Mapping[str, float] | Sequence[Any] = "prefix"
    per_image: int = 1
    left_pad: float = 0.0
    context_length: int = 0

    def __post_init__(self) -> None:
        _check_chance("texts.left_pad", self.left_pad)
        if self.left_pad and not self.context_length:
            raise UserError("texts.left_pad moves tokens: set texts.context_length to that of the text tower.")


@dataclass(frozen=True)
class CaptionTests:
    """Zero-shot vocabularies, phrase lists and ground truth of tests.

    Attributes:
        presence: vocabularies for zero-shot tests: maps a name to a pattern over an annotation's attributes and
            ``category``, e.g. ``dict(shape="{category}", colour_shape="{colour} {category}")``.
        presence_file: COCO annotations for ``presence``.
        phrases: lists of phrases for which results are also reported, from JSON files in the data root:
            ``dict(held_out=("world.json", "held_out"))`` is the list under that key.
        truth: scene file of a toy world; tests then count every image that a caption is true of as a match.
    """

    presence: Mapping[str, str] = field(default_factory=dict)
    presence_file: str | None = None
    phrases: Mapping[str, Any] = field(default_factory=dict)
    truth: str | None = None


#: Keys of the previous version, with their group and key of today; they are read for one version.
FORMER = {
    "image_folder": ("images", "folder"),
    "image_size": ("images", "size"),
    "fit": ("images", "fit"),
    "flip": ("images", "flip"),
    "exact_decode": ("images", "exact_decode"),
    "keep_images": ("images", "keep"),
    "cache": ("images", "cache"),
    "captions": ("texts", "policy"),
    "captions_per_image": ("texts", "per_image"),
    "left_pad": ("texts", "left_pad"),
    "context_length": ("texts", "context_length"),
    "presence": ("tests", "presence"),
    "presence_file": ("tests", "presence_file"),
    "phrases": ("tests", "phrases"),
    "truth": ("tests", "truth"),
}
GROUPS: dict[str, type] = {"images": ImageOptions, "texts": TextOptions, "tests": CaptionTests}


def read_options(
    groups: Mapping[str, Any], former: Mapping[str, Any]
) -> tuple[ImageOptions, TextOptions, CaptionTests]:
    """Parse the three groups of a config.

    Args:
        groups: for each name of :data:`GROUPS` a mapping, ready options, or None for the defaults.
        former: further keys; those of :data:`FORMER` override their group, with a FutureWarning.

    Raises:
        UserError: for unknown keys, with the nearest ones, and values out of range.
    """
    changes: dict[str, dict[str, Any]] = {name: {} for name in GROUPS}
    for key, value in former.items():
        group, new = FORMER[check_choice("key of CaptionDataset", key, [*GROUPS, *FORMER])]
        warnings.warn(
            f"CaptionDataset: {key} is now {group}=dict({new}=...); the old key will be removed in the next version.",
            FutureWarning,
            stacklevel=3,
        )
        changes[group][new] = value
    images, texts, tests = (_group(name, groups.get(name), changes[name]) for name in GROUPS)
    return images, texts, tests


def _group(name: str, given: Any, changes: Mapping[str, Any]) -> Any:
    kind = GROUPS[name]
    known = [f.name for f in fields(kind)]
    if isinstance(given, kind):
        given = {k: getattr(given, k) for k in known}
    if given is not None and not isinstance(given, Mapping):
        raise UserError(f"{name} of CaptionDataset is a dict of {', '.join(known)}; given {given!r:.60}.")
    for key in given or {}:
        check_choice(f"key of CaptionDataset's {name}", key, known)
    return kind(**{**(given or {}), **changes})
