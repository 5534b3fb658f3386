"""Names of class folders, from all common formats of name files.

* text: one name per line, in the sorted order of the folders; or ``FOLDER NAME`` (blank, tab, comma or colon), as
  ImageNet's ``synset_words.txt``; or ``INDEX NAME`` and ``NAME INDEX``;
* JSON or a Python literal: a list; folder, or index, to name; index to ``[folder, name]``
  (``imagenet_class_index.json``); name to index; each name a text or a list of synonyms;
* csv and tsv: one column, or a folder or index and a name, with or without a header.

Indices refer to the sorted folders, from 0 or from 1. A list of the folder names names each folder by itself. If all
folders are WordNet ids (``n01440764``), commas separate synonyms, as in WordNet's own lists.
"""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError, unknown_names
from smartclip_det.formats.texts import read_text

_WORDNET = re.compile(r"n\d{8}")
_WRAPPERS = ("classes", "names", "class_names", "labels", "categories")
_KEYS = ("folder", "wnid", "synset", "synset_id", "directory", "dir", "id", "class_id", "index", "idx", "label_id")
_NAMES = ("name", "names", "class_name", "classname", "label", "labels", "words", "description", "title", "class")


def read_class_names(source: str | Path, folders: Sequence[str], filled: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read the names of each class, the main name first, then synonyms.

    Args:
        source: see the module docstring.
        folders: all class folders, sorted; indices refer to these.
        filled: class folders with images; each needs a name.

    Returns:
        Folder in ``filled`` -> its names.

    Raises:
        UserError: for a folder without a name, a wrong number of names, or a name that is not a string.
    """
    path = Path(source)
    listing = _listing(read_text(path, "file of class names"), path, set(filled))
    if isinstance(listing, Mapping):
        missing = [f for f in filled if f not in listing]
        if missing:
            raise unknown_names("class folders", missing, listing, f"Names are looked up in {path}.")
        names = {f: listing[f] for f in filled}
    else:
        names = _by_order(listing, path, folders, filled)
    wordnet = all(_WORDNET.fullmatch(f) for f in filled)
    return {f: _texts(value, f, path, wordnet) for f, value in names.items()}


def _by_order(names: list[Any], path: Path, folders: Sequence[str], filled: Sequence[str]) -> dict[str, Any]:
    themselves = {n.replace(" ", "_"): n for n in names if isinstance(n, str)}
    if all(f.replace(" ", "_") in themselves for f in filled):
        return {f: themselves[f.replace(" ", "_")].replace("_", " ") for f in filled}
    for order in (folders, filled):
        if len(names) == len(order):
            by_folder = dict(zip(order, names, strict=True))
            return {f: by_folder[f] for f in filled}
    raise UserError(
        f"{path} has {len(names)} names for {len(folders)} class folders. Give one name per folder, or name the "
        "folders: "
        "FOLDER NAME on each line, or JSON of folder to name."
    )


def _texts(value: Any, folder: str, path: Path, wordnet: bool) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(t, str) and t.strip() for t in texts):
        raise UserError(
            f"{path}: the name of {folder} is {value!r}; expected a string, or a list of strings (synonyms)."
        )
    parts = [p.strip() for t in texts for p in (t.split(",") if wordnet else [t])]
    return tuple(dict.fromkeys(p for p in parts if p))


def _listing(text: str, path: Path, filled: set[str]) -> Mapping[str, Any] | list[Any]:
    """Parse names by folder, or in the order of the folders."""
    if path.suffix.lower() in (".csv", ".tsv"):
        return _of_table(text, path, filled)
    if path.suffix.lower() == ".json" or text.lstrip()[:1] in ("{", "["):
        return _of_structure(_parsed(text, path), path, filled)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    for separator in ("\t", ",", ":", None):
        parted = [[p.strip() for p in line.split(separator, 1)] for line in lines]
        if all(len(p) == 2 for p in parted) and filled <= {p[0] for p in parted}:
            return _keyed([(p[0], p[1]) for p in parted], path)
    for form, key, name in ((r"(\d+)(?:[\s:,.)]+)(.+)", 1, 2), (r"(.+?)[\s,]+(\d+)", 2, 1)):
        hits = [re.fullmatch(form, line) for line in lines]
        ordered = _in_order({int(h[key]): h[name] for h in hits if h}, len(lines)) if all(hits) else None
        if ordered:
            return ordered
    return lines


def _keyed(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, name in pairs:
        if out.setdefault(key, name) != name:
            raise UserError(f"{path} gives {key} two names, {out[key]!r} and {name!r}; give one, or a list in JSON.")
    return out


def _in_order(by_index: Mapping[int, Any], count: int) -> list[Any] | None:
    """Return values in index order if the indices are 0 to count - 1, or 1 to count; else None."""
    indices = sorted(by_index)
    complete = len(indices) == count > 0 and indices[0] in (0, 1) and indices[-1] - indices[0] == count - 1
    return [by_index[i] for i in indices] if complete else None


def _parsed(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise UserError(f"{path} is not valid JSON ({error}); it may be truncated.") from error


def _of_structure(content: Any, path: Path, filled: set[str]) -> Mapping[str, Any] | list[Any]:
    if isinstance(content, Mapping) and len(content) == 1 and next(iter(content)) in _WRAPPERS:
        content = next(iter(content.values()))
    if isinstance(content, list):
        return content
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}; class names must be a list, or map folder to name.")
    named = {str(k): v for k, v in content.items()}
    if filled <= set(named):
        if all(isinstance(v, int) for v in named.values()):
            raise UserError(
                f"{path} maps folders to numbers, not names. Without this file, classes are named by their folders."
            )
        return named
    pairs = [v for v in named.values() if isinstance(v, list) and len(v) == 2 and all(isinstance(t, str) for t in v)]
    if len(pairs) == len(named) and filled <= {v[0] for v in pairs}:
        return _keyed([(v[0], v[1]) for v in pairs], path)
    ordered = None
    if all(k.isdecimal() for k in named):
        ordered = _in_order({int(k): v for k, v in named.items()}, len(named))
    elif all(isinstance(v, int) and not isinstance(v, bool) for v in named.values()):
        ordered = _in_order({v: k for k, v in named.items()}, len(named))
    return named if ordered is None else ordered


def _of_table(text: str, path: Path, filled: set[str]) -> Mapping[str, Any] | list[Any]:
    rows = [
        [c.strip() for c in r]
        for r in csv.reader(text.split("\n"), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    ]
    rows = [r for r in rows if any(r)]
    header = [c.lower() for c in rows[0]] if rows else []
    name = next((header.index(n) for n in _NAMES if n in header), None)
    if len(header) == 1:
        return [r[0] for r in (rows if name is None or rows[0][0] in filled else rows[1:])]
    key = next((header.index(k) for k in _KEYS if k in header), None)
    if name is None or key is None or rows[0][key] in filled:
        if any(len(r) != 2 for r in rows):
            widths = ", ".join(str(n) for n in sorted({len(r) for r in rows})) or "no"
            raise UserError(
                f"{path} has rows of {widths} columns; give two (folder or index, name), or a header with one of "
                f"{', '.join(_KEYS)} and one of {', '.join(_NAMES)}."
            )
        key, name = 0, 1
    else:
        rows = rows[1:]
    short = next((n for n, r in enumerate(rows) if len(r) <= max(key, name)), None)
    if short is not None:
        raise UserError(f"{path}: row {short} has {len(rows[short])} columns: {rows[short]}.")
    return _of_structure(_keyed([(r[key], r[name]) for r in rows], path), path, filled)


def distinct_names(classes: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Return the distinct classes, each with a main name that no other class uses as its main name.

    Raises:
        UserError: for a class all of whose names are main names of others.
    """
    taken: set[str] = set()
    out = []
    different = list(dict.fromkeys(tuple(c) for c in classes))
    for names in sorted(different, key=len):
        head = next((n for n in names if n not in taken), None)
        if head is None:
            raise UserError(
                f"The names {', '.join(names)} of one class are also names of other classes; give it a unique name."
            )
        taken.add(head)
        out.append((names, (head, *(n for n in names if n != head))))
    renamed = dict(out)
    return [renamed[names] for names in different]
