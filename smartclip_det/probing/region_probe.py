"""Region probe: classification of ground-truth boxes with the towers alone, by view and mask mode.

Run it first for a new encoder: the novel-class accuracy of a frozen-backbone detector depends on the encoder's dense
features (CLIPSelf, arXiv 2310.01403, reports the same quantity as mAcc).

Shape letters: N boxes, C classes, D joint embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.text_bank import TextBank
from smartclip_det.formats.annotations import GroundTruth
from smartclip_det.formats.pictures import picture_path
from smartclip_det.formats.segmentations import segmentation_problem, whole_mask
from smartclip_det.models.regions import RegionEncoder
from smartclip_det.utils.images import open_rgb


@dataclass
class ProbeRegions:
    """Vectors of all boxes.

    Attributes:
        vectors: ``[N, D]`` by view: ``crop``, ``dense_MODE``, ``mask_MODE``; ``_unit`` pools unit vectors.
        labels: ``[N]`` class of each box, as an index into ``names``.
        names: C class names.
    """

    vectors: dict[str, Tensor]
    labels: np.ndarray
    names: tuple[str, ...]


def probe_regions(
    encoder: RegionEncoder,
    truth: GroundTruth,
    image_folder: str | Path,
    names: Sequence[str],
    *,
    views: Sequence[str] = ("crop", "dense", "mask"),
    dense_modes: Sequence[str] = ("value",),
    poolings: Sequence[str] = ("own",),
    progress: bool = True,
) -> ProbeRegions:
    """Encode every box of the annotations.

    Args:
        encoder: towers with their input sizes.
        truth: COCO annotations; crowds are skipped.
        image_folder: folder of the images, see :func:`picture_path`.
        names: the vocabulary; boxes of other classes are skipped.
        views: ``crop``, ``dense``, ``mask``; the last requires segmentations.
        dense_modes: for ``dense`` and ``mask``.
        poolings: for ``dense`` and ``mask``, see :meth:`RegionEncoder.vectors`.
        progress: show a progress bar.

    Raises:
        UserError: for missing images, names that the file does not have, or if there are no boxes to classify.
    """
    from tqdm import tqdm

    label_of = {i: n for n, i in enumerate(truth.category_ids(list(names)))}
    boxes: dict[Any, list[dict[str, Any]]] = {}
    for a in truth.data["annotations"]:
        if a["category_id"] in label_of and not a.get("iscrowd"):
            boxes.setdefault(a["image_id"], []).append(a)
    if not boxes:
        raise UserError("The annotations have no box of the vocabulary, so there is nothing to classify.")
    if "mask" in views:
        _check_masks(truth, boxes)
    vectors: dict[str, list[Tensor]] = {}
    labels: list[int] = []
    kept = [i for i in truth.data["images"] if i["id"] in boxes]
    for info in tqdm(kept, desc="region probe", unit="image", disable=not progress):
        mine = boxes[info["id"]]
        image = open_rgb(picture_path(image_folder, info, truth.path))
        labels += [label_of[a["category_id"]] for a in mine]
        for name, rows in _views_of(encoder, image, mine, views, dense_modes, poolings):
            vectors.setdefault(name, []).append(rows)
    return ProbeRegions({k: torch.cat(v) for k, v in vectors.items()}, np.array(labels), tuple(names))


def _views_of(
    encoder: RegionEncoder,
    image: Image.Image,
    annotations: Sequence[dict[str, Any]],
    views: Sequence[str],
    dense_modes: Sequence[str],
    poolings: Sequence[str],
) -> Iterator[tuple[str, Tensor]]:
    xyxy = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in annotations)]
    if "crop" in views:
        yield "crop", encoder.vectors(image, xyxy, "crop")
    for mode, pooling in product(dense_modes, poolings):
        name = mode if pooling == "own" else f"{mode}_{pooling}"
        if "dense" in views:
            yield f"dense_{name}", encoder.vectors(image, xyxy, "dense", dense_mode=mode, pooling=pooling)
        if "mask" in views:
            masks = np.stack([_decode(a, image) for a in annotations])
            yield f"mask_{name}", encoder.vectors(image, xyxy, "mask", masks, mode, pooling)


def _decode(annotation: dict[str, Any], image: Image.Image) -> np.ndarray:
    """``[H, W]`` bool of a COCO segmentation (RLE or polygons)."""
    where = f"Annotation {annotation.get('id')!r}"
    return whole_mask([annotation.get("segmentation")], (image.height, image.width), where)


def _check_masks(truth: GroundTruth, boxes: dict[Any, list[dict[str, Any]]]) -> None:
    """Reject invalid segmentations before any image is encoded."""
    mine = [a for rows in boxes.values() for a in rows]
    if not any(a.get("segmentation") for a in mine):
        raise UserError("The annotations have no segmentations; remove mask from the views.")
    for a in mine:
        width, height = truth.image_sizes.get(a["image_id"], (0, 0))
        # Without a size in the file they are checked when the image is read.
        problem = segmentation_problem(a.get("segmentation"), height, width) if width and height else ""
        if problem:
            raise UserError(
                f"{truth.path}: annotation {a.get('id')!r}: {problem} Fix it, or remove mask from the views."
            )


def probe_accuracy(
    regions: ProbeRegions,
    bank: TextBank,
    groups: dict[str, Sequence[str]],
    mask_modes: Sequence[str],
    policy: ScoringPolicy | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Fraction of boxes whose class has the best score among all classes of the bank.

    Args:
        regions: encoded boxes.
        bank: the vocabulary, in the order of ``regions.names``.
        groups: names of each group (``base``, ``novel``); ``all`` is added.
        mask_modes: modes of ``similarity.MASK_MODES``.
        policy: its ``text_norm`` and ``calibration`` are used.

    Returns:
        ``[group][view][mask_mode]``; -1 for a group without boxes. Micro average: classes are weighted by their boxes.
    """
    if bank.names != regions.names:
        raise UserError("The bank's classes differ from those of the probed regions.")
    policy = policy or ScoringPolicy()
    inside = {g: np.isin(regions.labels, [bank.index_of(n) for n in names]) for g, names in groups.items()}
    inside["all"] = np.ones(len(regions.labels), dtype=bool)
    out: dict[str, dict[str, dict[str, float]]] = {g: {} for g in inside}
    for view, vectors in regions.vectors.items():
        for mode in mask_modes:
            correct = bank.cosine(vectors, policy, mask_mode=mode).argmax(dim=1).numpy() == regions.labels
            for group, rows in inside.items():
                value = float(correct[rows].mean()) if rows.any() else -1.0
                out[group].setdefault(view, {})[mode] = value
    return out
