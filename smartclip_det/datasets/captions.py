"""Images with long and short captions, for alignment. Needs neither mmdet nor mmcv.

Shape letters: S side of the square image in pixels, N images.
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

from smartclip_det.core.errors import UserError
from smartclip_det.datasets.caption_options import CaptionTests, ImageOptions, TextOptions, read_options
from smartclip_det.datasets.caption_policies import CaptionPolicy, pad_left, partial_caption, policies_of
from smartclip_det.datasets.image_cache import ImageCache
from smartclip_det.datasets.region_texts import RegionTexts, read_presence
from smartclip_det.datasets.scene_captions import SceneCaptions
from smartclip_det.datasets.sides import mirrored_sentence
from smartclip_det.formats.captions import read_caption_records
from smartclip_det.formats.json_files import read_json
from smartclip_det.formats.shards import member_at
from smartclip_det.models.towers.tokenizer import encode, with_ends
from smartclip_det.utils.images import pixels, read_square

#: Number of images tried in place of an unreadable one.
_TRIES = 100


@DATASETS.register_module()
class CaptionDataset(BaseDataset):
    """Caption files of any layout of ``caption_files.LAYOUTS``.

    In training a sample has ``drawn_captions``, drawn by the policy from a generator that depends only on (seed, epoch,
    index), and ``drawn_tokens`` if ``context_length`` is set. An unreadable image is replaced by the next readable one
    and recorded in the sample (``replaced``). In test mode a sample has ``captions`` (``long``, ``short``, ``partial``)
    and ``present``, and every image must be readable.

    An index of ``epoch * N + i`` is image i in that epoch, so batch streams encode their epoch.

    Args:
        ann_file: caption file, folder of pairs, or shards.
        data_root: root of relative paths.
        layout: see ``caption_files.LAYOUTS``; ``auto`` recognises it.
        images: options of :class:`ImageOptions`.
        texts: options of :class:`TextOptions`.
        tests: options of :class:`CaptionTests`.
        regions: boxes with texts for training, options of ``region_texts.RegionTexts``.
        scenes: draw training captions (in place of ``texts.policy``), and the partial captions of tests, from a
            scene file; options of ``scene_captions.SceneCaptions``.
        skip: number of records to skip at the start (the release trains without the first 1,000).
        seed: seed of the captions.
        test_mode: return all captions instead of drawing one.
        indices: use only the first n records, or the given ones.
        former: keys of the previous version (:data:`caption_options.FORMER`).

    Raises:
        UserError: for unknown options, and values out of range.
    """

    def __init__(
        self,
        ann_file: str,
        data_root: str = "",
        layout: str = "auto",
        *,
        images: ImageOptions | Mapping[str, Any] | None = None,
        texts: TextOptions | Mapping[str, Any] | None = None,
        tests: CaptionTests | Mapping[str, Any] | None = None,
        regions: Mapping[str, Any] | None = None,
        scenes: Mapping[str, Any] | None = None,
        skip: int = 0,
        seed: int = 0,
        test_mode: bool = False,
        indices: int | Sequence[int] | None = None,
        **former: Any,
    ) -> None:
        given = {"images": images, "texts": texts, "tests": tests}
        self.images, self.texts, self.tests = read_options(given, former)
        self.exact = test_mode or self.images.exact_decode
        self.policies = policies_of(self.texts.policy, self.texts.per_image)
        self.layout, self.skip, self.seed, self.epoch = layout, skip, seed, 0
        self.regions = None if regions is None else RegionTexts(data_root=data_root, **regions)
        self.scenes = None if scenes is None else SceneCaptions(data_root=data_root, **scenes)
        self._kept: dict[int, Tensor] | None = {} if self.images.keep else None
        self._cache: ImageCache | None = None
        self._cache_rows: np.ndarray | None = None
        super().__init__(ann_file=ann_file, data_root=data_root, test_mode=test_mode, serialize_data=True)
        if self.images.cache is not None:
            self._cache = ImageCache(
                self.images.cache, self.names(), self.images.size, self.images.fit, exact=self.exact
            )
        if indices is not None:
            # The cache has a row for every record of the file.
            self._cache_rows = np.arange(indices) if isinstance(indices, int) else np.asarray(indices)
            self.get_subset_(indices)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that captions depend on; called by :class:`CaptionEpochHook`."""
        self.epoch = epoch

    def load_data_list(self) -> list[dict[str, Any]]:
        """One record per image, as plain values."""
        records, counts = read_caption_records(self.ann_file, self.layout)
        records = records[self.skip :]
        if not records:
            raise UserError(
                f"{self.ann_file} has {counts['records']} records, so skip={self.skip} leaves none. Set skip lower."
            )
        tests = self.tests
        if tests.presence:
            self._metainfo["vocabularies"] = read_presence(
                records, dict(tests.presence), tests.presence_file, self.data_root
            )
        if tests.phrases:
            self._metainfo["phrases"] = {
                name: list(read_json(Path(self.data_root) / file, "phrase file")[key])
                for name, (file, key) in tests.phrases.items()
            }
        if tests.truth is not None:
            from smartclip_det.datasets.toy_world.truth import SceneTruth

            self._metainfo["truth"] = SceneTruth.read(Path(self.data_root) / tests.truth)
        if self.regions is not None:
            self.regions.attach(records)
        if self.scenes is not None:
            self.scenes.attach(records)
        print_log(counts.summary(osp.basename(self.ann_file.rstrip("/")), len(records)), "current")
        return [vars(r) for r in records]

    def names(self) -> list[str]:
        """Image name of each record, which identifies a cache."""
        return [self.get_data_info(i)["image"] for i in range(len(self))]

    def read_image(self, index: int) -> Tensor:
        """``[3, S, S]`` uint8 RGB from the image file; a broken file is a :class:`UserError`."""
        name = self.get_data_info(index)["image"]
        path = osp.join(self._folder(), name)
        source = member_at(name).read() if ".tar#" in name else path
        return pixels(
            read_square(source, name if ".tar#" in name else path, self.images.size, self.images.fit, exact=self.exact)
        )

    def _folder(self) -> str:
        """Root of relative image names: the data root; for pairs without one, their folder."""
        if not self.data_root and Path(self.ann_file).is_dir():
            return self.ann_file
        return osp.join(self.data_root, self.images.folder)

    def image(self, index: int) -> Tensor:
        """``[3, S, S]`` uint8 RGB, from memory, the cache or its file."""
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        row = index if self._cache_rows is None else int(self._cache_rows[index])
        cached = None if self._cache is None else self._cache.get(row)
        prepared = self.read_image(index) if cached is None else cached
        if self._kept is not None:
            self._kept[index] = prepared
        return prepared

    def prepare_data(self, idx: int) -> dict[str, Any]:
        """``inputs [3, S, S]`` uint8 and ``data_samples``."""
        ahead, index = divmod(int(idx), len(self))
        if self.test_mode:
            return {"inputs": self.image(index), "data_samples": self._test_sample(index)}
        reason = ""
        for shift in range(min(_TRIES, len(self))):
            chosen = (index + shift) % len(self)
            try:
                image = self.image(chosen)
            except UserError as error:
                reason = reason or str(error)
                continue
            image, sample = self._train_sample(image, chosen, self.epoch + ahead)
            if reason:
                sample.set_metainfo({"replaced": reason, "img_path": self.get_data_info(index)["image"]})
            return {"inputs": image, "data_samples": sample}
        raise UserError(f"{min(_TRIES, len(self))} consecutive images are unreadable; the first: {reason}")

    def _test_sample(self, index: int) -> BaseDataElement:
        record = self.get_data_info(index)
        rng = np.random.default_rng([self.seed, index])
        long = [record["long"]] if record["long"] else []
        partial = [partial_caption(record["long"], rng)] if long else []
        if self.scenes is not None and record["objects"]:
            partial = [self.scenes.draw(record["objects"], self.scenes.ramp, rng)]
        captions = {"long": long, "short": record["short"], "partial": partial}
        facts = {
            "img_id": record["id"],
            "img_path": record["image"],
            "captions": captions,
            "present": record["present"],
        }
        return BaseDataElement(metainfo=facts)

    def _train_sample(self, image: Tensor, index: int, epoch: int) -> tuple[Tensor, BaseDataElement]:
        """A training sample, as a function of (seed, epoch, index) and the record."""
        record = self.get_data_info(index)
        rng = np.random.default_rng([self.seed, epoch, index])
        drawn = [self._caption(record, policy, epoch, rng) for policy in self.policies]
        mirrored = [mirrored_sentence(c) for c in drawn] if rng.random() < self.images.flip else [None]
        # The image is not mirrored if it is ambiguous whether a word of its captions means a side.
        flipped = all(c is not None for c in mirrored)
        if flipped:
            image, drawn = image.flip(-1), [str(c) for c in mirrored]
        sample = BaseDataElement(metainfo={"img_id": record["id"], "img_path": record["image"]})
        sample.set_metainfo({"drawn_captions": drawn})
        if self.texts.context_length:
            tokens = [self._tokens(c, rng) for c in drawn]
            sample.set_metainfo({"drawn_tokens": [t for t, _ in tokens], "texts_cut": sum(c for _, c in tokens)})
        if self.regions is not None:
            square = self.images.size, self.images.fit
            boxes, texts = self.regions.draw(record["regions"], record["size"], *square, flipped, rng)
            sample.set_metainfo({"region_boxes": boxes, "region_texts": texts})
        return image, sample

    def _caption(self, record: dict[str, Any], policy: CaptionPolicy, epoch: int, rng: np.random.Generator) -> str:
        if self.scenes is not None and record["objects"]:
            return self.scenes.draw(record["objects"], epoch * len(self), rng)
        return policy(record["long"], record["short"], rng)

    def _tokens(self, text: str, rng: np.random.Generator) -> tuple[list[int], bool]:
        """Token ids without padding on the right, truncated as in the released training, and whether they were."""
        tokens, limit = encode(text), self.texts.context_length
        ids, cut = with_ends(tokens, limit), len(tokens) + 2 > limit
        moved = self.texts.left_pad and rng.random() < self.texts.left_pad
        return pad_left(ids, limit, rng) if moved else ids, cut
