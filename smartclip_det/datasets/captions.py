"""Images with long and short captions (ShareGPT4V layout), for alignment. Needs neither mmdet nor mmcv.

Shape letters: S side of the square image in pixels.
"""

from __future__ import annotations

import os.path as osp
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from mmengine.structures import BaseDataElement
from torch import Tensor

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.datasets.caption_policies import CaptionPolicy, partial_caption, swap_sides
from smartclip_det.evaluation.detection_files import load_ground_truth, read_json
from smartclip_det.utils.images import FITS, fit_square, open_rgb, pixels


@DATASETS.register_module()
class ShareCaptionDataset(BaseDataset):
    """ShareGPT4V records: ``id``, ``image`` (relative path), ``conversations[1].value``, and optionally ``short``.

    In training a sample carries ``drawn_captions``, drawn by the policy from a generator that depends on nothing
    but (seed, epoch, index). In test mode it carries ``captions`` (``long``, ``short``, ``partial``) and ``present``.
    """

    def __init__(
        self,
        ann_file: str,
        data_root: str = "",
        image_size: int = 224,
        fit: str = "crop",
        captions: str | Mapping[str, float] = "prefix",
        captions_per_image: int = 1,
        presence: Mapping[str, str] | None = None,
        presence_file: str | None = None,
        flip: float = 0.0,
        keep_images: bool = False,
        seed: int = 0,
        test_mode: bool = False,
        indices: int | Sequence[int] | None = None,
    ) -> None:
        """Build.

        Args:
            ann_file: records, a JSON list.
            data_root: folder that relative paths are in.
            image_size: S.
            fit: how an image becomes a square, see ``utils.images.fit_square``.
            captions: policy of training texts, see ``caption_policies.CaptionPolicy``.
            captions_per_image: texts drawn for an image in one step; each set of B texts is one contrast, and the
                image is encoded once for all.
            presence: vocabularies for zero-shot tests: name to a pattern over an annotation's attributes and
                ``category``, e.g. ``dict(shape="{category}", colour_shape="{colour} {category}")``.
            presence_file: COCO annotations that ``presence`` is read from.
            flip: chance in training that an image is mirrored, and left and right exchanged in its caption.
            keep_images: keep prepared images in memory (3 S^2 bytes each).
            seed: of captions.
            test_mode: give all captions instead of drawing one.
            indices: use only the first n, or these, records.
        """
        self.image_size, self.fit = image_size, check_choice("fit", fit, FITS)
        self.policy = CaptionPolicy(captions)
        if captions_per_image < 1:
            raise UserError(f"captions_per_image must be at least 1; given {captions_per_image}.")
        self.captions_per_image = captions_per_image
        self.presence, self.presence_file = dict(presence or {}), presence_file
        if not 0 <= flip <= 1:
            raise UserError(f"flip is a chance in [0, 1]; given {flip}.")
        self.seed, self.epoch, self.flip = seed, 0, flip
        self._kept: dict[int, Tensor] | None = {} if keep_images else None
        super().__init__(ann_file=ann_file, data_root=data_root, test_mode=test_mode, indices=indices,
                         serialize_data=True)  # fmt: skip

    def set_epoch(self, epoch: int) -> None:
        """Captions of the coming epoch; :class:`CaptionEpochHook` calls it."""
        self.epoch = epoch

    def load_data_list(self) -> list[dict[str, Any]]:
        """One record per image: id, path, long caption, short captions, names present by vocabulary."""
        content = read_json(Path(self.ann_file), "caption file")
        if not isinstance(content, list) or not content:
            raise UserError(f"{self.ann_file} must hold a JSON list of records (ShareGPT4V layout).")
        try:
            records = [
                {
                    "id": r["id"],
                    "path": osp.join(self.data_root, r["image"]),
                    "long": r["conversations"][1]["value"],
                    "short": list(r.get("short", ())),
                }
                for r in content
            ]
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(
                f"{self.ann_file}: a record lacks {error}; each needs id, image and conversations[1].value."
            ) from error
        if self.presence:
            vocabularies, present = self._read_presence()
            self._metainfo["vocabularies"] = vocabularies
            for r in records:
                r["present"] = {v: sorted(present[v].get(r["id"], ())) for v in vocabularies}
        print_log(f"{osp.basename(self.ann_file)}: {len(records)} images with captions.", "current")
        return records

    def _read_presence(self) -> tuple[dict[str, list[str]], dict[str, dict[Any, set[str]]]]:
        """Names of each vocabulary, and for each image the names that are in it."""
        if not self.presence_file:
            raise UserError("presence needs presence_file, the COCO annotations to read it from.")
        truth = load_ground_truth(osp.join(self.data_root, self.presence_file))
        vocabularies: dict[str, list[str]] = {}
        present: dict[str, dict[Any, set[str]]] = {}
        for vocabulary, pattern in self.presence.items():
            found: dict[Any, set[str]] = {}
            for a in truth.data["annotations"]:
                facts = {**a.get("attributes", {}), "category": truth.categories[a["category_id"]]}
                try:
                    found.setdefault(a["image_id"], set()).add(pattern.format(**facts))
                except (KeyError, IndexError) as error:
                    raise UserError(
                        f"presence pattern {pattern!r} asks for {error}; annotations of {self.presence_file} have "
                        f"{', '.join(facts)}."
                    ) from error
            vocabularies[vocabulary] = sorted(set().union(*found.values()))
            present[vocabulary] = found
        return vocabularies, present

    def image(self, index: int) -> Tensor:
        """``[3, S, S]`` uint8 RGB."""
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        prepared = pixels(fit_square(open_rgb(self.get_data_info(index)["path"]), self.image_size, self.fit))
        if self._kept is not None:
            self._kept[index] = prepared
        return prepared

    def prepare_data(self, idx: int) -> dict[str, Any]:
        """``inputs [3, S, S]`` uint8 and ``data_samples``."""
        record = self.get_data_info(idx)
        sample = BaseDataElement(metainfo={"img_id": record["id"], "img_path": record["path"]})
        if self.test_mode:
            rng = np.random.default_rng([self.seed, int(idx)])
            captions = {"long": [record["long"]], "short": record["short"] or [],
                        "partial": [partial_caption(record["long"], rng)]}  # fmt: skip
            sample.set_metainfo({"captions": captions, "present": record.get("present", {})})
        else:
            rng = np.random.default_rng([self.seed, self.epoch, int(idx)])
            drawn = [self.policy(record["long"], record["short"], rng) for _ in range(self.captions_per_image)]
            if rng.random() < self.flip:
                sample.set_metainfo({"drawn_captions": [swap_sides(c) for c in drawn]})
                return {"inputs": self.image(idx).flip(-1), "data_samples": sample}
            sample.set_metainfo({"drawn_captions": drawn})
        return {"inputs": self.image(idx), "data_samples": sample}
