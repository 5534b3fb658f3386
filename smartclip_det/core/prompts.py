"""Prompts: class names to texts, by the conventions of published systems.

Template sets: ``clip_80`` (CLIP's 80 ImageNet templates), ``vild_63`` (ViLD's 63 with their own name cleaning),
``photo`` ("a photo of a {}."), ``none`` (the bare name). Texts are never truncated here: one over the token limit is an
error of the tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.words import TEMPLATE_SETS

_FILES = Path(__file__).parent / "templates"
_BETWEEN_LETTERS = re.compile(r"(?<=[^\W\d_])/(?=[^\W\d_])")
_MARKS = re.compile(r"_|" + _BETWEEN_LETTERS.pattern)


@cache
def templates(name: str) -> tuple[str, ...]:
    """Templates of a named set, each with ``{}`` for the name and optionally ``{article}``."""
    check_choice("templates", name, TEMPLATE_SETS)
    if name == "none":
        return ("{}",)
    if name == "photo":
        return ("a photo of a {}.",)
    return tuple((_FILES / f"{name}.txt").read_text(encoding="utf-8").split("\n")[: int(name.rsplit("_", 1)[1])])


def words(name: str) -> str:
    """Class name in plain words: ``aerosol_can`` becomes "aerosol can", ``bottle/cup`` becomes "bottle or cup".

    LVIS, Objects365 and others use separators that captions do not have; Detic, RegionCLIP and CLIPSelf replace them as
    well. A slash is replaced only between two letters (``w/ hat`` and ``1/2`` stay); parentheses stay.
    """
    if not _MARKS.search(name):
        return name
    return _BETWEEN_LETTERS.sub(" or ", " ".join(w for w in name.split("_") if w)).strip() or name


def article(name: str) -> str:
    """``an`` before a vowel letter, else ``a``. This is ViLD's rule: it looks at spelling, not at sound."""
    return "an" if name[:1].lower() in tuple("aeiou") else "a"


def clean_name(name: str) -> str:
    """ViLD's name cleaning: ``_`` to space, ``/`` to " or ", lower case, no trailing dot."""
    return name.replace("_", " ").replace("/", " or ").lower().rstrip(".")


def fill(template: str, name: str) -> str:
    """Insert a name, cleaned by :func:`words`, into one template."""
    if "{}" not in template:
        raise UserError(f"The template {template!r} has no '{{}}' for the class name.")
    name = words(name)
    return template.replace("{article}", article(name)).replace("{}", name)


def _vild_prompt(template: str, name: str) -> str:
    text = fill(template, clean_name(name))
    return f"This is {text}" if text.startswith(("a ", "an ", "the ")) else text


def class_prompts(names: Iterable[str], template_set: str | Sequence[str] = "photo") -> list[list[str]]:
    """Texts of each class.

    Args:
        names: class names; none empty.
        template_set: a named set, or a sequence of templates, each with ``{}``.

    Returns:
        The texts of each name, in the order of the templates.

    Raises:
        UserError: for an empty list or name, an unknown set, or a template without ``{}``.
    """
    names = list(names)
    if not names:
        raise UserError("The list of class names is empty.")
    empty = [i for i, n in enumerate(names) if not n.strip()]
    if empty:
        raise UserError(f"Class names must not be empty; empty at position {empty[0]}.")
    if template_set == "vild_63":
        return [[_vild_prompt(t, n) for t in templates("vild_63")] for n in names]
    chosen = templates(template_set) if isinstance(template_set, str) else tuple(template_set)
    if not chosen:
        raise UserError("The list of templates is empty.")
    return [[fill(t, n) for t in chosen] for n in names]
