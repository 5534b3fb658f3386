"""Shared parts of label converters: the result, class lists, and image lookup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from smartclip_det.core.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@dataclass
class Converted:
    """Labels converted to COCO annotations.

    Attributes:
        data: images, annotations and categories.
        root: folder that ``file_name`` is relative to; None if images were not read.
        notes: counts, by reason, of skipped labels and of labels that were interpreted.
    """

    data: dict[str, Any]
    root: Path | None = None
    notes: Counter[str] = field(default_factory=Counter)


def pictures_in(folder: Path) -> list[Path]:
    """List the images of a folder recursively, sorted."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def categories_of(names: Sequence[str]) -> list[dict[str, Any]]:
    """Build COCO categories, numbered from 1; repeated names are an error."""
    twice = sorted(n for n, count in Counter(names).items() if count > 1)
    if twice:
        raise UserError(f"Class names must differ; given twice: {', '.join(twice[:5])}.")
    return [{"id": i, "name": n} for i, n in enumerate(names, 1)]


def slashed(name: str) -> str:
    r"""Normalise an image path in labels to slashes.

    Absolute paths (``C:\data\a.jpg``) are reduced to the file name.
    """
    path = PurePosixPath(name.strip().replace("\\", "/"))
    if not name.strip():
        return ""
    return path.name if path.is_absolute() or (path.parts and path.parts[0].endswith(":")) else path.as_posix()


class PictureFolder:
    """Look up images of a folder by the names used in labels."""

    def __init__(self, folder: Path) -> None:
        """Index a folder; it must exist and have images."""
        if not folder.is_dir():
            raise UserError(f"No image folder at {folder}.")
        self.folder = folder
        names = [p.relative_to(folder).as_posix() for p in pictures_in(folder)]
        if not names:
            raise UserError(f"No images in {folder} ({', '.join(IMAGE_SUFFIXES)}).")
        self._names = set(names)
        self._alike: dict[str, list[str]] = {}
        for name in names:
            path = PurePosixPath(name)
            whole, bare = name.lower(), path.with_suffix("").as_posix().lower()
            # Labels may omit the folder, the suffix, or both, and may differ in case.
            for key in dict.fromkeys((whole, bare, path.name.lower(), path.stem.lower())):
                self._alike.setdefault(key, []).append(name)

    def find(self, name: str) -> str | None:
        """Return the image with that name, relative to the folder; None if there is none.

        Raises:
            UserError: if several images match the name.
        """
        if name in self._names:
            return name
        path = PurePosixPath(name)
        suffixed = path.suffix.lower() in IMAGE_SUFFIXES
        bare = path.with_suffix("").as_posix() if suffixed else name
        for key in (name, bare, path.name, PurePosixPath(bare).name):
            matches = self._alike.get(key.lower(), [])
            if len(matches) == 1:
                return matches[0]
            if matches:
                raise UserError(
                    f"The labels refer to the image {name!r}, but {self.folder} has several images of that name: "
                    f"{', '.join(matches[:3])}. Use full relative paths in the labels."
                )
        return None


def refuse_lost(lost: Iterable[str], count: int, folder: Path) -> None:
    """Raise an error for missing images, before a file that refers to them is written."""
    names = list(lost)
    if names:
        raise UserError(
            f"{len(names)} of {count} images named by the labels are not in {folder}, e.g. "
            f"{folder / names[0]}. Give their folder with --images, or fix the names."
        )
