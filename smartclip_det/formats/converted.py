"""What converters of labels share: the result, class lists, and pictures that labels name."""

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
    """Labels of another layout as COCO annotations.

    Attributes:
        data: images, annotations, categories.
        root: folder that ``file_name`` is relative to; None where no picture was looked at.
        told: how often something was left out, or read in a way that its maker should know, by reason.
    """

    data: dict[str, Any]
    root: Path | None = None
    told: Counter[str] = field(default_factory=Counter)


def pictures_in(folder: Path) -> list[Path]:
    """Pictures of a folder, searched in depth, sorted."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def categories_of(names: Sequence[str]) -> list[dict[str, Any]]:
    """COCO categories, numbered from 1; repeated names are refused."""
    twice = sorted(n for n, count in Counter(names).items() if count > 1)
    if twice:
        raise UserError(f"Class names must differ; given twice: {', '.join(twice[:5])}.")
    return [{"id": i, "name": n} for i, n in enumerate(names, 1)]


def slashed(name: str) -> str:
    r"""A path as labels hold it, with slashes; of an absolute one (``C:\data\a.jpg``) the file's name alone."""
    path = PurePosixPath(name.strip().replace("\\", "/"))
    if not name.strip():
        return ""
    return path.name if path.is_absolute() or (path.parts and path.parts[0].endswith(":")) else path.as_posix()


class PictureFolder:
    """The pictures of a folder, to be found by the names that labels give them."""

    def __init__(self, folder: Path) -> None:
        """Build; a folder that is missing or holds no picture is refused."""
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
            # A label may leave out the folder, the suffix, or both, or write them in another case.
            for key in dict.fromkeys((whole, bare, path.name.lower(), path.stem.lower())):
                self._alike.setdefault(key, []).append(name)

    def find(self, name: str) -> str | None:
        """The picture that a label means, relative to the folder; None for none.

        Raises:
            UserError: when several pictures answer to the name.
        """
        if name in self._names:
            return name
        path = PurePosixPath(name)
        suffixed = path.suffix.lower() in IMAGE_SUFFIXES
        bare = path.with_suffix("").as_posix() if suffixed else name
        for key in (name, bare, path.name, PurePosixPath(bare).name):
            found = self._alike.get(key.lower(), [])
            if len(found) == 1:
                return found[0]
            if found:
                raise UserError(
                    f"The labels name the picture {name!r}; {self.folder} holds several of that name: "
                    f"{', '.join(found[:3])}. Write the whole name into the labels."
                )
        return None


def refuse_lost(lost: Iterable[str], asked: int, folder: Path) -> None:
    """Refuse pictures that are not there, before a file is written whose images do not exist."""
    names = list(lost)
    if names:
        raise UserError(
            f"{len(names)} of {asked} pictures that the labels name are not in {folder}, e.g. "
            f"{folder / names[0]}. Give their folder by --images, or mend the names."
        )
