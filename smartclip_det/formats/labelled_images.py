"""Labelled images from class folders or CIFAR files, for zero-shot classification.

Shape letters: N images, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.formats.captions import IMAGE_ENDINGS
from smartclip_det.formats.class_names import read_class_names
from smartclip_det.formats.reasons import ReasonCounts
from smartclip_det.utils.files import is_debris
from smartclip_det.utils.images import open_rgb
from smartclip_det.utils.safe_load import load_plain_pickle

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev"}


class FolderCounts(ReasonCounts):
    """What was skipped in class folders, or read from subfolders."""

    meanings: ClassVar[dict[str, str]] = {
        "hidden": "hidden files and folders: not read",
        "empty_folders": "folders without images: not a class",
        "outside": "images next to the class folders: not read",
        "other_endings": f"files without one of the suffixes {', '.join(IMAGE_ENDINGS)}: not read",
        "in_sub_folders": "images in subfolders of a class folder: belong to that class",
    }


@dataclass
class LabelledImages:
    """Images with one class each.

    Attributes:
        names: C class names, as used in templates.
        labels: ``[N]`` class of each image.
        paths: N files; empty if images are in ``pixels``.
        pixels: ``[N, H, W, 3]`` uint8, or None.
        synonyms: further names of each class, whose texts are averaged with its own; may be empty.
        counts: skipped files, by reason.
    """

    names: list[str]
    labels: np.ndarray
    paths: list[Path]
    pixels: np.ndarray | None = None
    synonyms: list[tuple[str, ...]] = field(default_factory=list)
    counts: FolderCounts = field(default_factory=lambda: FolderCounts())

    @property
    def all_names(self) -> list[tuple[str, ...]]:
        """All names of each class."""
        return [(n, *more) for n, more in zip(self.names, self.synonyms or [()] * len(self.names), strict=True)]

    def summary(self, name: str) -> str:
        """Format a summary of the folder ``name``."""
        text = f"{name}: {len(self.labels):,} images of {len(self.names):,} classes"
        several = sum(len(n) > 1 for n in self.all_names)
        text += f", {several:,} of them with synonyms, whose texts are averaged." if several else "."
        return f"{text}\n{self.counts.table()}".rstrip()

    def open(self, n: int) -> Image.Image:
        """Open image n as RGB."""
        return open_rgb(self.paths[n]) if self.pixels is None else Image.fromarray(self.pixels[n])


def read_labelled(folder: str | Path, names: str | Path | None = None) -> LabelledImages:
    """Read a folder of class folders (ImageNet layout), or CIFAR's binary or Python version.

    Args:
        folder: ``CLASS/IMAGE`` files; or ``cifar-10-batches-bin``, ``cifar-100-binary``, ``cifar-10-batches-py``,
            ``cifar-100-python`` (the test images; of pickles only plain data and arrays are read).
        names: name file in a format of ``class_names``; default: the folder names.

    Returns:
        Images of each class folder and its subfolders. Hidden folders and folders without images are not classes; they
        are counted, as are files that are not read.

    Raises:
        UserError: if there are no images, for a folder without a name, or split folders instead of class folders.
    """
    root = Path(folder)
    for meta, test, skip in (("batches.meta.txt", "test_batch.bin", 0), ("fine_label_names.txt", "test.bin", 1)):
        if (root / meta).is_file():
            return _cifar(root / test, (root / meta).read_text(encoding="utf-8").split(), skip)
    for meta, test, names_key, labels_key in (
        ("batches.meta", "test_batch", "label_names", "labels"),
        ("meta", "test", "fine_label_names", "fine_labels"),
    ):
        if (root / meta).is_file():
            return _cifar_pickles(root / meta, root / test, names_key, labels_key)
    if not root.is_dir():
        raise UserError(f"No folder at {root}.")
    counts = FolderCounts()
    files = _files_of_classes(root, counts)
    filled = [f for f, images in files.items() if images]
    if not filled:
        skipped = f" ({counts.reasons()})" if counts else ""
        raise UserError(f"{root} has no CLASS/IMAGE files, and no CIFAR files{skipped}.")
    _refuse_splits(root, filled, files)
    for f in files:
        if f not in filled:
            counts.add("empty_folders", f)
    called = (
        {f: (f.replace("_", " "),) for f in filled} if names is None else read_class_names(names, list(files), filled)
    )
    labels = np.array([n for n, f in enumerate(filled) for _ in files[f]])
    return LabelledImages(
        [called[f][0] for f in filled],
        labels,
        [p for f in filled for p in files[f]],
        synonyms=[called[f][1:] for f in filled],
        counts=counts,
    )


def _files_of_classes(root: Path, counts: FolderCounts) -> dict[str, list[Path]]:
    """List the images of each candidate class folder, in order."""
    files: dict[str, list[Path]] = {}
    for folder in sorted(root.iterdir()):
        if is_debris(folder.name):
            counts.add("hidden", folder.name)
        elif not folder.is_dir():
            if folder.suffix.lower() in IMAGE_ENDINGS:
                counts.add("outside", folder.name)
        else:
            files[folder.name] = _pictures(folder, root, counts)
    return files


def _pictures(folder: Path, root: Path, counts: FolderCounts) -> list[Path]:
    images = []
    for p in sorted(folder.rglob("*")):
        name = str(p.relative_to(root))
        if is_debris(p.relative_to(root)):
            counts.add("hidden", name)
        elif p.suffix.lower() in IMAGE_ENDINGS and not p.is_dir():
            images.append(p)
            if p.parent != folder:
                counts.add("in_sub_folders", name)
        elif not p.is_dir():
            counts.add("other_endings", name)
    return images


def _refuse_splits(root: Path, filled: list[str], files: dict[str, list[Path]]) -> None:
    """Raise an error if class folders are one level deeper, as in a data set with ``train`` and ``val``."""
    below = {p.relative_to(root).parts[1] for f in filled for p in files[f] if p.parent != root / f}
    direct = any(p.parent == root / f for f in filled for p in files[f])
    splits = all(f.lower() in _SPLITS for f in filled)
    further_down = not direct and (splits or len(below) > 1)
    if further_down or (splits and len(filled) > 1):
        raise UserError(
            f"The folders of {root} ({', '.join(filled[:3])}) look like splits or groups, not classes: the class "
            f"folders are one level deeper, or missing. Give the folder that contains them, e.g. {root / filled[0]}."
        )


def _cifar(path: Path, names: list[str], skip: int) -> LabelledImages:
    """Read CIFAR's binary rows: (coarse label,) label, 3 x 32 x 32 bytes."""
    if not path.is_file():
        raise UserError(f"No test images at {path}.")
    row = skip + 1 + 3072
    data = np.fromfile(path, np.uint8)
    if not len(data) or len(data) % row:
        raise UserError(f"{path} has {len(data)} bytes, which is not a multiple of {row}: it is truncated.")
    rows = data.reshape(-1, row)
    return _cifar_images(names, rows[:, skip].astype(int), rows[:, skip + 1 :])


def _cifar_images(names: list[str], labels: np.ndarray, rows: np.ndarray) -> LabelledImages:
    """``rows`` [N, 3072]: red, green, blue planes of 32 x 32."""
    pixels = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return LabelledImages([n.replace("_", " ") for n in names], labels, [], np.ascontiguousarray(pixels))


def _cifar_pickles(meta: Path, test: Path, names_key: str, labels_key: str) -> LabelledImages:
    """Read CIFAR's Python version: a dict with ``data`` [N, 3072] uint8 and a list of labels."""
    info, batch = load_plain_pickle(meta), load_plain_pickle(test, arrays=True)
    try:
        names, labels, rows = list(info[names_key]), np.asarray(batch[labels_key]), np.asarray(batch["data"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{test} and {meta.name} are not CIFAR files: {error} is missing.") from error
    if (
        rows.dtype != np.uint8
        or rows.shape != (len(labels), 3072)
        or not set(labels.tolist()) <= set(range(len(names)))
    ):
        raise UserError(
            f"{test}: data of {rows.dtype} {rows.shape} and {len(labels)} labels of {len(names)} classes; "
            "CIFAR has a uint8 row of 3,072 for each label."
        )
    return _cifar_images(names, labels.astype(int), rows)
