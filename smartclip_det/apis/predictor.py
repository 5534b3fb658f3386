"""Predictor: one image encoding, many cheap text queries; by towers alone, or by a detector or head that was trained.

Shape letters: R regions, C classes, D joint embedding, H W image pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smartclip_det.apis.detections import Detections
from smartclip_det.apis.encoding import photograph
from smartclip_det.apis.explanation import Explanation
from smartclip_det.apis.expressions import GroundsExpressions
from smartclip_det.apis.families.base import EncodedImage, Family
from smartclip_det.apis.families.loading import family_of_config, family_of_towers
from smartclip_det.apis.inputs import (
    HeldImage,
    ImageLike,
    OnBad,
    check_count,
    check_texts,
    check_threshold,
    is_image,
    read_images,
)
from smartclip_det.apis.tiles import answer_images
from smartclip_det.core.errors import UserError
from smartclip_det.core.text_bank import TextBank
from smartclip_det.models.boxes import BoxSource
from smartclip_det.models.vocabulary import default_cache_dir


class Predictor(GroundsExpressions):
    """Detect, ground, explain, embed and segment.

    >>> predictor = Predictor.from_pretrained("smartclip-b16", boxes="torchvision")   # doctest: +SKIP
    >>> predictor = Predictor.from_config("config.py", "epoch_3.pth")                  # doctest: +SKIP
    >>> predictor.set_image("street.jpg")                                              # doctest: +SKIP
    >>> predictor.detect(["red mug", "left dog"]).above(0.5)                           # doctest: +SKIP
    """

    def __init__(self, family: Family, *, templates: str | Sequence[str] = "photo", parser: str = "auto") -> None:
        """Build from a family; :meth:`from_pretrained` and :meth:`from_config` are the usual ways.

        Args:
            family: encodes images and answers.
            templates: prompts of class names.
            parser: who reads expressions: ``auto`` (spaCy where a pipeline is installed), ``rules``, or the name of a
                spaCy pipeline.
        """
        self.family, self.templates, self.parser = family, templates, parser
        self._held: HeldImage[list[Any]] = HeldImage()

    @classmethod
    def from_pretrained(
        cls,
        name: Any,
        *,
        boxes: str | Path | BoxSource | None = "torchvision",
        device: str = "auto",
        templates: str | Sequence[str] = "photo",
        masks: str = "hard",
        policy: Mapping[str, Any] | None = None,
        use_cache: bool = True,
        parser: str = "auto",
        precision: str = "fp32",
        **options: Any,
    ) -> Predictor:
        """Towers alone, without training: boxes of any source, ranked by region vectors.

        Args:
            name: of public weights (``smartclip-det models`` lists them), a checkpoint file or folder, or an encoder.
            boxes: where boxes come from: ``torchvision`` (its Faster R-CNN's proposals), ``owlv2``,
                ``mm-grounding-dino``, ``llmdet``, ``mmdet:CONFIG:CHECKPOINT``, a file of boxes, a ready source; None
                where each image comes with its boxes.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
            templates: see the constructor.
            masks: how texts' masks are used: ``hard``, ``off``, or another mask mode.
            policy: changes to the scoring policy.
            use_cache: keep encoded texts in the user's cache folder.
            parser: see the constructor.
            precision: of the image tower: ``fp32``, ``bf16`` or ``fp16``.
            options: of :class:`FreeOptions`: ``regions``, ``objectness_power``, ``nms_iou``, ``max_boxes``,
                ``max_detections``, ``dense_size``, ``dense_mode``, ``crop_context``.

        Raises:
            UserError: for unknown names, sources and options, with the nearest ones, and files that are not there.
        """
        family = family_of_towers(
            name,
            boxes,
            device=device,
            masks=masks,
            policy=policy,
            precision=precision,
            options=options,
            cache_dir=default_cache_dir() if use_cache else None,
        )
        return Predictor(family, templates=templates, parser=parser)

    @classmethod
    def from_config(
        cls,
        config: str | Path,
        checkpoint: str | Path | None = None,
        *,
        device: str = "auto",
        cfg_options: Mapping[str, Any] | None = None,
        templates: str | Sequence[str] = "photo",
        policy: Mapping[str, Any] | None = None,
        use_cache: bool = True,
        parser: str = "auto",
        precision: str = "fp32",
    ) -> Predictor:
        """A detector (two-stage or one-stage) or a grounding head of a config, and its checkpoint.

        Args:
            config: config file, or the name of one that came with the package.
            checkpoint: weights; None for the config's initial ones (random heads: for tests only).
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
            cfg_options: overrides.
            templates: see the constructor.
            policy: changes to the default policy: the detector's, with a sigmoid against background.
            use_cache: keep encoded texts in the user's cache folder.
            parser: see the constructor.
            precision: of the tower and neck; all else is computed in fp32.

        Raises:
            UserError: for missing files, configs of other models, or a device that is not there.
        """
        family = family_of_config(
            config,
            checkpoint,
            device=device,
            cfg_options=cfg_options,
            policy=policy,
            precision=precision,
            cache_dir=default_cache_dir() if use_cache else None,
        )
        return Predictor(family, templates=templates, parser=parser)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.family.device

    @property
    def encoder(self) -> Any:
        """The towers, or their text side where a detector has the image tower."""
        return self.family.towers

    @property
    def detector(self) -> Any:
        """The detector of families that have one.

        Raises:
            UserError: for the others.
        """
        found = getattr(self.family, "detector", None)
        if found is None:
            raise UserError(f"This predictor ({self.family.kind}) has no detector.")
        return found

    @property
    def policy(self) -> Any:
        """Scoring policy of families that score regions; None for a grounding head, whose scores are its own."""
        return getattr(self.family, "policy", None)

    @property
    def protocol(self) -> dict[str, Any]:
        """How answers are made, for their stamp."""
        return {"family": self.family.kind, **self.family.facts()}

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Names of the bank in force; empty before :meth:`set_vocabulary`."""
        bank = self.family.bank
        return () if bank is None else bank.names

    def set_vocabulary(self, vocabulary: Sequence[str] | TextBank, *, seen: Sequence[str] | None = None) -> TextBank:
        """Put a vocabulary in force; weights are not touched.

        Args:
            vocabulary: class names or a ready bank of the same towers.
            seen: names that were trained on; fusions weigh them otherwise. Default: all count as unseen when names
                are given.

        Returns:
            The bank; its :meth:`TextBank.with_images` adds rows from pictures, and is put in force by another call.
        """
        if isinstance(vocabulary, TextBank):
            bank = self.family.check_bank(vocabulary)
        else:
            bank = self.family.texts(vocabulary, self.templates, self._order).with_seen(seen or [])
        bank = replace(bank, picture_encoder=self.picture_vectors)
        self.family.set_bank(bank)
        return bank

    @property
    def _order(self) -> str:
        return getattr(self.policy, "template_order", "average_state")

    def proposals(self, top_k: int = 100, *, image: EncodedImage | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The ``top_k`` class-agnostic boxes and their objectness.

        Returns:
            ``[N, 4]`` xyxy pixels of the original image, after a box head's regression where there is one, and ``[N]``
            in [0, 1] (1 in families that have none).
        """
        image, top_k = self._image(image), check_count("top_k", top_k)
        if not isinstance(image, EncodedImage):
            raise UserError(f"A {self.family.kind} has no proposals: it finds its boxes from the expression.")
        order = image.objectness.argsort(descending=True, stable=True)[:top_k]
        return image.boxes[order].cpu().numpy(), image.objectness[order].cpu().numpy()

    @torch.no_grad()
    def detect(
        self,
        texts: Sequence[str] | TextBank | None = None,
        *,
        threshold: float = 0.0,
        max_detections: int | None = None,
        image: Any = None,
    ) -> Detections:
        """Boxes of each text.

        Args:
            texts: phrases to look for, or a bank; None for the vocabulary in force. Given ones do not replace it.
            threshold: lowest score kept.
            max_detections: boxes at most; default: the family's.
            image: what :meth:`encode_image` gave; default: the image that this thread set.

        Raises:
            UserError: without an image or texts, for blank texts, and for limits outside their range.
        """
        if texts is None:
            bank = self._bank_of(texts)
            return self._detect(self._image(image), bank, threshold, max_detections)
        image = self._image(image)
        if not isinstance(texts, str | TextBank) and len(texts) == 0:
            # A vocabulary that turned out empty finds nothing.
            return Detections.none(image=image.picture.given)
        return self._detect(image, self._bank_of(texts), threshold, max_detections)

    def _bank_of(self, texts: Sequence[str] | TextBank | None) -> TextBank:
        if texts is None:
            if self.family.bank is None:
                raise UserError("No texts given and no vocabulary in force. Give texts or call set_vocabulary([...]).")
            return self.family.bank
        if isinstance(texts, TextBank):
            return self.family.check_bank(texts)
        return self.family.texts(check_texts(texts, "phrase"), self.templates, self._order)

    def _detect(self, image: Any, bank: TextBank, threshold: float, limit: int | None) -> Detections:
        threshold = check_threshold(threshold)
        limit = None if limit is None else check_count("max_detections", limit)
        return self.family.detect(image, bank, threshold, limit)

    @torch.no_grad()
    def detect_images(
        self,
        images: ImageLike | Iterable[ImageLike] | None = None,
        texts: Sequence[str] | TextBank | None = None,
        *,
        batch_size: int = 1,
        threshold: float = 0.0,
        max_detections: int | None = None,
        tile: tuple[int, int] | None = None,
        every: int = 1,
        on_bad: OnBad | None = None,
    ) -> Iterator[Detections]:
        """:meth:`detect` of each image; the texts are encoded once and do not replace the vocabulary in force.

        Args:
            images: an image, a folder, a pattern, a video, or a list or generator of these, as
                :func:`apis.inputs.read_images` takes them, read as they come; None for those of :meth:`set_images`.
            texts: see :meth:`detect`.
            batch_size: images that are read, and go through the tower, together.
            threshold: lowest score kept.
            max_detections: boxes of an image, or of a tile, at most.
            tile: side and overlap in pixels of the tiles that images are cut into; None: whole images.
            every: of a video, the first of so many frames.
            on_bad: called for a picture that cannot be read, which is then passed over; None: it is an error.
        """
        bank = self._bank_of(texts)
        if images is None:
            yield from (self._detect(e, bank, threshold, max_detections) for e in self._held.get())
            return
        if tile is not None:
            yield from answer_images(
                self,
                images,
                bank,
                batch_size=batch_size,
                tile=tile,
                every=every,
                on_bad=on_bad,
                threshold=threshold,
                max_detections=max_detections,
            )
            return
        waiting = read_images(images, every=every, on_bad=on_bad)
        while batch := list(islice(waiting, check_count("batch_size", batch_size))):
            for encoded in self.encode_images([photograph(*b) for b in batch], batch_size=batch_size):
                yield self._detect(encoded, bank, threshold, max_detections)

    @torch.no_grad()
    def explain(self, text: str, *, image: Any = None) -> Explanation:
        """Masked cosine of each grid cell with a text, and the text's mask."""
        (one,) = check_texts([text] if isinstance(text, str) else text, "text")
        return self.family.explain(self._image(image), one)

    @torch.no_grad()
    def embed(self, boxes: Any = None, *, image: Any = None) -> np.ndarray:
        """``[R, D]`` vectors that texts are compared with, not normalised.

        Args:
            boxes: ``[R, 4]`` xyxy pixels; None for the image's own boxes in the order of its encoding.
            image: what :meth:`encode_image` gave, or an image; default: the image that this thread set.

        Raises:
            UserError: without an image, and for boxes that are not this image's.
        """
        if boxes is not None:
            picture = image if is_image(image) else self._image(image).picture
            image = self.encode_image(picture, boxes=boxes)
        elif is_image(image):
            image = self.encode_image(image)
        return self.family.embed(self._image(image))[1].float().cpu().numpy()

    @torch.no_grad()
    def segment(self, what: str | Detections, *, image: Any = None) -> np.ndarray:
        """Masks, by families whose head has them.

        Args:
            what: an expression, or detections of the image.
            image: what :meth:`encode_image` gave; default: the image that this thread set.

        Returns:
            ``[H, W]`` bool of an expression (all False where it means nothing), ``[N, H, W]`` of N detections.

        Raises:
            UserError: for a family without masks.
        """
        image = self._image(image)
        if isinstance(what, Detections):
            return self.family.segment(image, "", torch.as_tensor(what.boxes, dtype=torch.float32))
        (text,) = check_texts(what, "expression")
        boxes = None
        if self.reads_trees:
            boxes = torch.as_tensor(self.ground(text, image=image).boxes, dtype=torch.float32)
        masks = self.family.segment(image, text, boxes)
        return masks[0] if len(masks) else np.zeros(masks.shape[1:], dtype=bool)
