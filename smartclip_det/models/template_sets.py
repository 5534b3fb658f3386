"""Named sets of prompt templates, and the texts of class names by the conventions of published systems.

* ``clip_80``: CLIP's 80 ImageNet templates, from open_clip.
* ``vild_63``: ViLD's 63 templates with their own name cleaning. open_clip does not have them, so they are a file here.
* ``photo``: "a photo of a {}."
* ``none``: the bare name.

Texts are never truncated here: one over the token limit is an error of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.prompts import fill
from smartclip_det.core.words import TEMPLATE_SETS
from smartclip_det.models.towers.tokenizer import imagenet_templates

_VILD_63 = Path(__file__).parent / "templates/vild_63.txt"


@cache
def templates(name: str) -> tuple[str, ...]:
    """Templates of a named set, each with ``{}`` for the name and optionally ``{article}``."""
    check_choice("templates", name, TEMPLATE_SETS)
    if name == "none":
        return ("{}",)
    if name == "photo":
        return ("a photo of a {}.",)
    if name == "clip_80":
        return imagenet_templates()
    return tuple(_VILD_63.read_text(encoding="utf-8").splitlines())


def clean_name(name: str) -> str:
    """ViLD's name cleaning: ``_`` to space, ``/`` to " or ", lower case, no trailing dot."""
    return name.replace("_", " ").replace("/", " or ").lower().rstrip(".")


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
