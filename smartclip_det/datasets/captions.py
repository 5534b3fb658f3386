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

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.datasets.caption_policies import CaptionPolicy, pad_left, partial_caption, policies_of
from smartclip_det.datasets.image_cache import ImageCache
from smartclip_det.datasets.region_texts import RegionTexts, read_presence
from smartclip_det.datasets.scene_captions import SceneCaptions
from smartclip_det.datasets.sides import mirrored_sentence
from smartclip_det.formats.captions import read_caption_records
from smartclip_det.formats.json_files import read_json
from smartclip_det.formats.shards import member_at
from smartclip_det.models.towers.tokenizer import encode, with_ends
from smartclip_det.utils.images import FITS, pixels, read_square

#: Images tried in place of one that cannot be read.
_TRIES = 100


@DATASETS.register_module()
class CaptionDataset(BaseDataset):
    """Caption files of any layout of ``caption_files.LAYOUTS``.

    In training a sample carries ``drawn_captions``, drawn by the policy from a generator that depends on nothing but
    (seed, epoch, index), and ``drawn_tokens`` where ``context_length`` is given. An image that cannot be read is
    replaced by the next one that can, and the sample says so (``replaced``). In test mode a sample carries
    ``captions`` (``long``, ``short``, ``partial``) and ``present``, and every image must be readable.

    An index of ``epoch * N + i`` is image i in that epoch: streams of batches carry their epoch along.
    """

    def __init__(
        self,
        ann_file: str,
        data_root: str = "",
        image_folder: str = "",
        layout: str = "auto",
        image_size: int = 224,
        fit: str = "crop",
        captions: str | Mapping[str, float] | Sequence[Any] = "prefix",
        captions_per_image: int = 1,
        left_pad: float = 0.0,
        context_length: int = 0,
        presence: Mapping[str, str] | None = None,
        presence_file: str | None = None,
        phrases: Mapping[str, Any] | None = None,
        regions: Mapping[str, Any] | None = None,
        scenes: Mapping[str, Any] | None = None,
        truth: str | None = None,
        flip: float = 0.0,
        exact_decode: bool = False,
        keep_images: bool = False,
        cache: str | None = None,
        skip: int = 0,
        seed: int = 0,
        test_mode: bool = False,
        indices: int | Sequence[int] | None = None,
    ) -> None:
        """Build.

        Args:
            ann_file: caption file, folder of pairs, or shards.
            data_root: folder that relative paths are in.
            image_folder: folder in ``data_root`` that image paths are in.
            layout: see ``caption_files.LAYOUTS``; ``auto`` recognises it.
            image_size: S.
            fit: how an image becomes a square, see ``utils.images.fit_square``.
            captions: policy of training texts, see ``caption_policies.policies_of``.
            captions_per_image: texts drawn for an image in one step; each set of B texts is one contrast, and the
                image is encoded once for all.
            left_pad: chance that a text is moved right by padding, see ``caption_policies.pad_left``.
            context_length: tokens of the text tower; texts are then tokenised by the workers. 0: by the model.
            presence: vocabularies for zero-shot tests: name to a pattern over an annotation's attributes and
                ``category``, e.g. ``dict(shape="{category}", colour_shape="{colour} {category}")``.
            presence_file: COCO annotations that ``presence`` is read from.
            phrases: lists of phrases that results are also told for, read from a JSON file of the data root:
                ``dict(held_out=("world.json", "held_out"))`` is the list under that key.
            regions: boxes with texts for training, options of ``region_texts.RegionTexts``.
            scenes: a scene file that training captions, and the partial captions of tests, are drawn from; options
                of ``scene_captions.SceneCaptions``.
            truth: scene file of a toy world, by which tests count every picture that a caption is true of.
            flip: chance in training that an image is mirrored, and left and right exchanged in its texts.
            exact_decode: decode whole images in training, too, as tests always do; see ``utils.images.read_square``.
            keep_images: keep prepared images in memory (3 S^2 bytes each).
            cache: folder of prepared images that ``tools/data/cache_images.py`` made.
            skip: first records to leave out (the release trains on what follows the first 1,000).
            seed: of captions.
            test_mode: give all captions instead of drawing one.
            indices: use only the first n, or these, records.
        """
        self.image_size, self.fit, self.layout = image_size, check_choice("fit", fit, FITS), layout
        self.image_folder, self.exact = image_folder, test_mode or exact_decode
        self.policies = policies_of(captions, captions_per_image)
        for name, chance in (("flip", flip), ("left_pad", left_pad)):
            if not 0 <= chance <= 1:
                raise UserError(f"{name} is a chance in [0, 1]; given {chance}.")
        if left_pad and not context_length:
            raise UserError("left_pad moves tokens: give context_length, that of the text tower.")
        self.left_pad, self.context_length, self.skip = left_pad, context_length, skip
        self.presence, self.presence_file = dict(presence or {}), presence_file
        self.phrases = dict(phrases or {})
        self.regions = None if regions is None else RegionTexts(data_root=data_root, **regions)
        self.scenes = None if scenes is None else SceneCaptions(data_root=data_root, **scenes)
        self.truth = truth
        self.seed, self.epoch, self.flip = seed, 0, flip
        self._kept: dict[int, Tensor] | None = {} if keep_images else None
        self._cache: ImageCache | None = None
        super().__init__(ann_file=ann_file, data_root=data_root, test_mode=test_mode, serialize_data=True)
        self._cache_rows: np.ndarray | None = None
        if cache is not None:
            self._cache = ImageCache(cache, self.names(), image_size, fit, exact=self.exact)
        if indices is not None:
            # Rows of the cache are those of the whole file.
            self._cache_rows = np.arange(indices) if isinstance(indices, int) else np.asarray(indices)
            self.get_subset_(indices)

    def set_epoch(self, epoch: int) -> None:
        """Captions of the coming epoch; :class:`CaptionEpochHook` calls it where the sampler does not tell."""
        self.epoch = epoch

    def load_data_list(self) -> list[dict[str, Any]]:
        """One record per image, as plain values."""
        records, counts = read_caption_records(self.ann_file, self.layout)
        records = records[self.skip :]
        if not records:
            raise UserError(f"{self.ann_file} has {counts['records']} records; skip={self.skip} leaves none.")
        if self.presence:
            self._metainfo["vocabularies"] = read_presence(records, self.presence, self.presence_file, self.data_root)
        if self.phrases:
            self._metainfo["phrases"] = {
                name: list(read_json(Path(self.data_root) / file, "phrase file")[key])
                for name, (file, key) in self.phrases.items()
            }
        if self.truth is not None:
            from smartclip_det.datasets.toy_world.truth import SceneTruth

            self._metainfo["truth"] = SceneTruth.read(Path(self.data_root) / self.truth)
        if self.regions is not None:
            self.regions.attach(records)
        if self.scenes is not None:
            self.scenes.attach(records)
        print_log(counts.summary(osp.basename(self.ann_file.rstrip("/")), len(records)), "current")
        return [vars(r) for r in records]

    def names(self) -> list[str]:
        """The image of each record: what a cache is made for."""
        return [self.get_data_info(i)["image"] for i in range(len(self))]

    def read_image(self, index: int) -> Tensor:
        """``[3, S, S]`` uint8 RGB from its file, by the transform; a broken file is a :class:`UserError`."""
        name = self.get_data_info(index)["image"]
        path = osp.join(self._folder(), name)
        source = member_at(name).read() if ".tar#" in name else path
        return pixels(
            read_square(source, name if ".tar#" in name else path, self.image_size, self.fit, exact=self.exact)
        )

    def _folder(self) -> str:
        """Where relative image names are: the data root; for pairs without one, their folder."""
        if not self.data_root and Path(self.ann_file).is_dir():
            return self.ann_file
        return osp.join(self.data_root, self.image_folder)

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
        raise UserError(f"{min(_TRIES, len(self))} images in a row cannot be read; the first: {reason}")

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
        """A drawn sample: a function of (seed, epoch, index) and the record."""
        record = self.get_data_info(index)
        rng = np.random.default_rng([self.seed, epoch, index])
        drawn = [self._caption(record, policy, epoch, rng) for policy in self.policies]
        turned = [mirrored_sentence(c) for c in drawn] if rng.random() < self.flip else [None]
        # A picture stays as it is where nobody knows what a word of its captions becomes.
        flipped = all(c is not None for c in turned)
        if flipped:
            image, drawn = image.flip(-1), [str(c) for c in turned]
        sample = BaseDataElement(metainfo={"img_id": record["id"], "img_path": record["image"]})
        sample.set_metainfo({"drawn_captions": drawn})
        if self.context_length:
            tokens = [self._tokens(c, rng) for c in drawn]
            sample.set_metainfo({"drawn_tokens": [t for t, _ in tokens], "texts_cut": sum(c for _, c in tokens)})
        if self.regions is not None:
            boxes, texts = self.regions.draw(record["regions"], record["size"], self.image_size, self.fit, flipped, rng)
            sample.set_metainfo({"region_boxes": boxes, "region_texts": texts})
        return image, sample

    def _caption(self, record: dict[str, Any], policy: CaptionPolicy, epoch: int, rng: np.random.Generator) -> str:
        if self.scenes is not None and record["objects"]:
            return self.scenes.draw(record["objects"], epoch * len(self), rng)
        return policy(record["long"], record["short"], rng)

    def _tokens(self, text: str, rng: np.random.Generator) -> tuple[list[int], bool]:
        """Ids without padding on the right, cut to the context as in the released training, and whether they were."""
        found = encode(text)
        ids, cut = with_ends(found, self.context_length), len(found) + 2 > self.context_length
        moved = self.left_pad and rng.random() < self.left_pad
        return pad_left(ids, self.context_length, rng) if moved else ids, cut
