"""Labelled images of a folder or of CIFAR's files, for zero-shot classification.

Shape letters: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from smartclip_det.core.errors import UserError, unknown_names
from smartclip_det.formats.captions import IMAGE_ENDINGS
from smartclip_det.formats.detections import read_json
from smartclip_det.utils.images import open_rgb
from smartclip_det.utils.safe_load import load_plain_pickle


@dataclass
class LabelledImages:
    """Images with one class each.

    Attributes:
        names: C class names, as they are put into templates.
        labels: ``[N]`` class of each image.
        paths: N files; empty where ``pixels`` holds the images.
        pixels: ``[N, H, W, 3]`` uint8, or None.
    """

    names: list[str]
    labels: np.ndarray
    paths: list[Path]
    pixels: np.ndarray | None = None

    def open(self, n: int) -> Image.Image:
        """The RGB image n."""
        return open_rgb(self.paths[n]) if self.pixels is None else Image.fromarray(self.pixels[n])


def read_labelled(folder: str | Path, names: str | Path | None = None) -> LabelledImages:
    """A folder with one folder for each class (ImageNet's layout), or CIFAR's binary or Python version.

    Args:
        folder: ``CLASS/IMAGE`` files; or ``cifar-10-batches-bin``, ``cifar-100-binary``, ``cifar-10-batches-py``,
            ``cifar-100-python`` (the test images; of pickles only plain data and arrays are read).
        names: JSON with a name for each class folder, or a text file with a name on each line, in the sorted order of
            the folders (ImageNet's names for its sorted wnids); default: the folders' names.

    Raises:
        UserError: nothing to read, a name for a folder that is not there, or a folder without a name.
    """
    root = Path(folder)
    for meta, test, skip in (("batches.meta.txt", "test_batch.bin", 0), ("fine_label_names.txt", "test.bin", 1)):
        if (root / meta).is_file():
            return _cifar(root / test, (root / meta).read_text(encoding="utf-8").split(), skip)
    for meta, test, names_key, labels_key in (("batches.meta", "test_batch", "label_names", "labels"),
                                              ("meta", "test", "fine_label_names", "fine_labels")):  # fmt: skip
        if (root / meta).is_file():
            return _cifar_pickles(root / meta, root / test, names_key, labels_key)
    if not root.is_dir():
        raise UserError(f"No folder at {root}.")
    folders = sorted(p.name for p in root.iterdir() if p.is_dir())
    files = {f: sorted(p for p in (root / f).iterdir() if p.suffix.lower() in IMAGE_ENDINGS) for f in folders}
    if not any(files.values()):
        raise UserError(f"{root} has no CLASS/IMAGE files, and no CIFAR files.")
    named = _names(folders, names)
    paths = [p for f in folders for p in files[f]]
    labels = np.array([n for n, f in enumerate(folders) for _ in files[f]])
    return LabelledImages(named, labels, paths)


def _names(folders: list[str], source: str | Path | None) -> list[str]:
    if source is None:
        return [f.replace("_", " ") for f in folders]
    path = Path(source)
    if path.suffix == ".json":
        found: Mapping[str, Any] = read_json(path, "class names")
        missing = [f for f in folders if f not in found]
        if missing:
            raise unknown_names("class folders", missing, found, f"Their names are looked up in {path}.")
        return [str(found[f]) for f in folders]
    if not path.is_file():
        raise UserError(f"No file of class names at {path}.")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(lines) != len(folders):
        raise UserError(f"{path} has {len(lines)} names for {len(folders)} class folders.")
    return lines


def _cifar(path: Path, names: list[str], skip: int) -> LabelledImages:
    """CIFAR's rows: (a coarse label,) the label, 3 x 32 x 32 bytes."""
    if not path.is_file():
        raise UserError(f"No test images at {path}.")
    row = skip + 1 + 3072
    data = np.fromfile(path, np.uint8)
    if not len(data) or len(data) % row:
        raise UserError(f"{path} has {len(data)} bytes, which is not whole rows of {row}: it is cut short.")
    rows = data.reshape(-1, row)
    return _cifar_images(names, rows[:, skip].astype(int), rows[:, skip + 1 :])


def _cifar_images(names: list[str], labels: np.ndarray, rows: np.ndarray) -> LabelledImages:
    """``rows`` [N, 3072]: red, green, blue planes of 32 x 32."""
    pixels = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return LabelledImages([n.replace("_", " ") for n in names], labels, [], np.ascontiguousarray(pixels))


def _cifar_pickles(meta: Path, test: Path, names_key: str, labels_key: str) -> LabelledImages:
    """CIFAR's Python version: a dict with ``data`` [N, 3072] uint8 and a list of labels."""
    told, found = load_plain_pickle(meta), load_plain_pickle(test, arrays=True)
    try:
        names, labels, rows = list(told[names_key]), np.asarray(found[labels_key]), np.asarray(found["data"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{test} and {meta.name} are no CIFAR files: {error} is missing.") from error
    if (
        rows.dtype != np.uint8
        or rows.shape != (len(labels), 3072)
        or not set(labels.tolist()) <= set(range(len(names)))
    ):
        raise UserError(f"{test}: data of {rows.dtype} {rows.shape} and {len(labels)} labels of {len(names)} classes; "
                        "CIFAR has a uint8 row of 3,072 for each label.")  # fmt: skip
    return _cifar_images(names, labels.astype(int), rows)
