"""Class names in templates. Named template sets are in :mod:`smartclip_det.models.template_sets`."""

from __future__ import annotations

import re

from smartclip_det.core.errors import UserError

_BETWEEN_LETTERS = re.compile(r"(?<=[^\W\d_])/(?=[^\W\d_])")
_MARKS = re.compile(r"_|" + _BETWEEN_LETTERS.pattern)


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


def fill(template: str, name: str) -> str:
    """Insert a name, cleaned by :func:`words`, into one template."""
    if "{}" not in template:
        raise UserError(f"The template {template!r} has no '{{}}' for the class name.")
    name = words(name)
    return template.replace("{article}", article(name)).replace("{}", name)
