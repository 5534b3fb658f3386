"""Images with all their referring expressions, for training grounding heads.

Shape letters: S side of the square image in pixels, E sentences of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from mmengine.structures import BaseDataElement
from PIL import Image

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.datasets.leakage import image_key
from smartclip_det.datasets.referring_augment import mirror, random_crop
from smartclip_det.formats.expressions.loading import load_expressions
from smartclip_det.formats.expressions.record import Expression
from smartclip_det.formats.segmentations import run_lengths, whole_mask
from smartclip_det.utils.images import fit_square, open_rgb, pixels, square_boxes, square_scale


@DATASETS.register_module()
class ReferringDataset(BaseDataset):
    """Expression files of all layouts of ``load_expressions``; one sample is one image.

    A sample has ``inputs [3, S, S]`` uint8 and a data sample with ``sentences``, ``sentence_ids``, ``boxes`` (per
    sentence ``[n, 4]`` xyxy pixels of the square; n = 0 for a sentence without a target), optionally ``masks``
    (``[S, S]`` bool per sentence), and ``scale`` (square over image pixels, x and y), which undoes the letterbox. The
    image is encoded once for all its sentences. An index of ``epoch * N + i`` is image i in that epoch.

    Args:
        ann_file: expression file, or several to train on jointly.
        images: folder with the image files (``file_name``).
        data_root: root of relative paths.
        split: split of the file.
        instances: ``instances.json`` for a refs file; default: the one in its folder.
        image_size: S.
        fit: ``pad`` (letterbox) or ``squash``.
        sentences_per_image: number of sentences drawn per image and epoch; 0: all.
        with_masks: return masks; every target must have one.
        flip: probability of mirroring an image in training, see ``referring_augment.mirror``. Recent recipes for
            referring expressions do not use it.
        crop: probability of a crop in training, see ``referring_augment.random_crop``.
        without: text file with names of images to exclude; ``tools/data/check_leakage.py`` writes the images of a
            benchmark's val and test splits.
        seed: seed of random draws.
        test_mode: all sentences, no augmentation.
        indices: use only the first n images, or the given ones.
    """

    def __init__(
        self,
        ann_file: str | Sequence[str],
        images: str = "",
        data_root: str = "",
        split: str | None = None,
        instances: str | None = None,
        image_size: int = 384,
        fit: str = "pad",
        sentences_per_image: int = 0,
        with_masks: bool = False,
        flip: float = 0.0,
        crop: float = 0.0,
        without: str | None = None,
        seed: int = 0,
        test_mode: bool = False,
        indices: int | Sequence[int] | None = None,
    ) -> None:
        self.files = [ann_file] if isinstance(ann_file, str) else list(ann_file)
        self.images, self.split, self.instances, self.without = images, split, instances, without
        self.image_size, self.fit = image_size, check_choice("fit", fit, ("pad", "squash"))
        for name, chance in (("flip", flip), ("crop", crop)):
            if not 0 <= chance <= 1:
                raise UserError(f"{name} must be a probability in [0, 1]; given {chance}.")
        if crop and with_masks:
            raise UserError("Crops do not support masks: set crop=0 or with_masks=False.")
        self.flip, self.crop, self.with_masks = flip, crop, with_masks
        self.sentences_per_image, self.seed, self.epoch = sentences_per_image, seed, 0
        super().__init__(data_root=data_root, test_mode=test_mode, serialize_data=True, indices=indices)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that random draws depend on; called by :class:`CaptionEpochHook`."""
        self.epoch = epoch

    def _path(self, name: str) -> str:
        return str(Path(self.data_root) / name) if self.data_root else name

    def load_data_list(self) -> list[dict[str, Any]]:
        """One record per image."""
        by_image: dict[Any, list[Expression]] = {}
        for n, file in enumerate(self.files):
            loaded = load_expressions(
                self._path(file), split=self.split, instances=self.instances and self._path(self.instances)
            )
            for e in loaded:
                by_image.setdefault((n, e.image_id), []).append(e)
        left_out = 0
        if self.without:
            names = Path(self._path(self.without))
            if not names.is_file():
                raise UserError(f"No list of images to exclude at {names}. Create it with tools/data/check_leakage.py.")
            lines = (line.strip() for line in names.read_text(encoding="utf-8").splitlines())
            banned = {image_key(line) for line in lines if line}
            before = len(by_image)
            by_image = {k: v for k, v in by_image.items() if image_key(v[0].file_name) not in banned}
            left_out = before - len(by_image)
            if banned and not left_out:
                raise UserError(
                    f"None of the {len(banned)} images listed in {names} is in the expression files: the list is for "
                    "another dataset. Fix the list, or remove without=..."
                )
        if not by_image:
            raise UserError(f"{', '.join(self.files)}: no images left.")
        records = [self._record(group) for group in by_image.values()]
        count = sum(len(r["sentences"]) for r in records)
        excluded = f", {left_out} images of {self.without} excluded" if self.without else ""
        print_log(f"{', '.join(self.files)}: {count} sentences of {len(records)} images{excluded}.", "current")
        return records

    def _record(self, group: Sequence[Expression]) -> dict[str, Any]:
        if self.with_masks:
            bare = [e.id for e in group if len(e.masks) != len(e.boxes)]
            if bare:
                raise UserError(
                    f"with_masks=True, but sentence {bare[0]!r} has boxes without masks. Use refs files with "
                    "instances.json, or with_masks=False."
                )
            group = [_with_checked_masks(e) for e in group]
        return {
            "img_id": group[0].image_id,
            "img_path": self._path(str(Path(self.images) / group[0].file_name)),
            "sentences": [e.sentence for e in group],
            "sentence_ids": [e.id for e in group],
            "boxes": [[list(b) for b in e.boxes] for e in group],
            "segmentations": [list(e.masks) for e in group] if self.with_masks else None,
        }

    def prepare_data(self, idx: int) -> dict[str, Any]:
        """``inputs`` and ``data_samples``, a function of (seed, epoch, index) and the record."""
        ahead, index = divmod(int(idx), len(self))
        record = self.get_data_info(index)
        rng = np.random.default_rng([self.seed, self.epoch + ahead, index])
        chosen = list(range(len(record["sentences"])))
        if not self.test_mode and self.sentences_per_image:
            chosen = sorted(rng.permutation(len(chosen))[: self.sentences_per_image].tolist())
        sentences = [record["sentences"][i] for i in chosen]
        boxes = [record["boxes"][i] for i in chosen]
        image, masks = open_rgb(record["img_path"]), None
        if self.with_masks:
            masks = [
                whole_mask(record["segmentations"][i], (image.height, image.width), record["img_path"]) for i in chosen
            ]
        flipped = False
        if not self.test_mode:
            image, boxes, sentences, masks, flipped = self._augmented(image, boxes, sentences, masks, rng)
        square, size = pixels(fit_square(image, self.image_size, self.fit)), image.size
        facts = {
            "img_id": record["img_id"],
            "img_path": record["img_path"],
            "ori_shape": size[::-1],
            "scale": square_scale(size, self.image_size, self.fit),
            "sentences": sentences,
            "flipped": flipped,
            "sentence_ids": [record["sentence_ids"][i] for i in chosen],
            "boxes": [
                torch.from_numpy(square_boxes(np.array(b), size, self.image_size, self.fit)).float() for b in boxes
            ],
        }
        if masks is not None:
            facts["masks"] = torch.stack([self._square_mask(m) for m in masks])
        return {"inputs": square, "data_samples": BaseDataElement(metainfo=facts)}

    def _augmented(
        self,
        image: Image.Image,
        boxes: list[Any],
        sentences: list[str],
        masks: list[np.ndarray] | None,
        rng: np.random.Generator,
    ) -> tuple[Image.Image, list[Any], list[str], list[np.ndarray] | None, bool]:
        """Crop and mirror with their probabilities."""
        flip, crop = rng.random() < self.flip, rng.random() < self.crop
        ends = np.cumsum([0, *(len(b) for b in boxes)])
        flat = [b for group in boxes for b in group]
        if crop:
            image, flat = random_crop(image, flat, sentences, rng)
        mirrored = mirror(image, flat, sentences) if flip else None
        if mirrored is not None:
            image, flat, sentences = mirrored
            masks = None if masks is None else [m[:, ::-1] for m in masks]
        parts = [flat[a:b] for a, b in pairwise(ends)]
        return image, parts, sentences, masks, mirrored is not None

    def _square_mask(self, mask: np.ndarray) -> torch.Tensor:
        """``[S, S]`` bool: the mask on the square input."""
        height, width = mask.shape
        if self.fit == "pad":
            canvas = np.zeros((max(mask.shape), max(mask.shape)), dtype=np.uint8)
            canvas[:height, :width] = mask
            mask = canvas
        resized = Image.fromarray(np.ascontiguousarray(mask).astype(np.uint8) * 255).resize(
            (self.image_size, self.image_size), Image.Resampling.BILINEAR
        )
        return torch.from_numpy(np.asarray(resized) >= 128)


def _with_checked_masks(expression: Expression) -> Expression:
    """Validate that the masks can be decoded; without an image size this happens when the image is loaded."""
    if not (expression.width and expression.height):
        return expression
    try:
        masks = tuple(run_lengths(m, expression.height, expression.width) for m in expression.masks)
    except UserError as error:
        raise UserError(f"Mask of sentence {expression.id!r} ({expression.file_name}): {error}") from error
    return replace(expression, masks=masks)
