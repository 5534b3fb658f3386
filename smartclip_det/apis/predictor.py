"""Predictor: encode an image once, run many cheap text queries; with towers alone, a trained detector or a head.

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
    CurrentImage,
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
        """Initialise from a family; usually :meth:`from_pretrained` or :meth:`from_config` is used instead.

        Args:
            family: back end that encodes images and answers queries.
            templates: prompt templates of class names.
            parser: parser of referring expressions: ``auto`` (spaCy if a pipeline is installed), ``rules``, or the name
                of a spaCy pipeline.
        """
        self.family, self.templates, self.parser = family, templates, parser
        self._current: CurrentImage[list[Any]] = CurrentImage()

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
        """Use towers alone, without training: boxes of any source, ranked by region vectors.

        Args:
            name: name of public weights (listed by ``smartclip-det models``), a checkpoint file or folder, or an
                encoder.
            boxes: box source: ``torchvision`` (proposals of its Faster R-CNN), ``owlv2``,
                ``mm-grounding-dino``, ``llmdet``, ``mmdet:CONFIG:CHECKPOINT``, a file of boxes, or a ready source; None
                if boxes are passed with each image.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
            templates: see the constructor.
            masks: mask mode: ``hard``, ``off``, or another one.
            policy: changes to the scoring policy.
            use_cache: cache encoded texts in the user's cache folder.
            parser: see the constructor.
            precision: precision of the image tower: ``fp32``, ``bf16`` or ``fp16``.
            options: fields of :class:`FreeOptions`: ``regions``, ``objectness_power``, ``nms_iou``, ``max_boxes``,
                ``max_detections``, ``dense_size``, ``dense_mode``, ``crop_context``.

        Raises:
            UserError: for unknown names, sources and options, with the nearest ones, and missing files.
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
        """Load a detector (two-stage or one-stage) or a grounding head from a config and its checkpoint.

        Args:
            config: config file, or the name of a packaged config.
            checkpoint: weights; None for the config's initial weights (random heads, for tests only).
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
            cfg_options: config overrides.
            templates: see the constructor.
            policy: changes to the default policy: the detector's policy with a sigmoid against background.
            use_cache: cache encoded texts in the user's cache folder.
            parser: see the constructor.
            precision: precision of image tower and neck; the rest runs in fp32.

        Raises:
            UserError: for missing files, configs of other models, or an unavailable device.
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
        """Device of the model."""
        return self.family.device

    @property
    def encoder(self) -> Any:
        """The towers, or their text side if the image tower is part of a detector."""
        return self.family.towers

    @property
    def detector(self) -> Any:
        """The detector, for families that have one.

        Raises:
            UserError: for other families.
        """
        detector = getattr(self.family, "detector", None)
        if detector is None:
            raise UserError(f"This predictor ({self.family.kind}) has no detector.")
        return detector

    @property
    def policy(self) -> Any:
        """Scoring policy of families that score regions; None for a grounding head, which computes its own scores."""
        return getattr(self.family, "policy", None)

    @property
    def protocol(self) -> dict[str, Any]:
        """Model and settings, for stamps."""
        return {"family": self.family.kind, **self.family.facts()}

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Names of the current vocabulary; empty before :meth:`set_vocabulary`."""
        bank = self.family.bank
        return () if bank is None else bank.names

    def set_vocabulary(self, vocabulary: Sequence[str] | TextBank, *, seen: Sequence[str] | None = None) -> TextBank:
        """Set the current vocabulary; weights are not changed.

        Args:
            vocabulary: class names, or a text bank encoded by the same towers.
            seen: names seen in training, which fusion may weight differently. Default: all given names count as
                unseen.

        Returns:
            The bank. Its :meth:`TextBank.with_images` adds rows from images; pass the result to this method again.
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
        """Return the ``top_k`` class-agnostic boxes and their objectness.

        Returns:
            ``[N, 4]`` xyxy pixels of the original image, after the box head's regression if there is one, and ``[N]``
            objectness in [0, 1] (1 for families without objectness).
        """
        image, top_k = self._image(image), check_count("top_k", top_k)
        if not isinstance(image, EncodedImage):
            raise UserError(f"A {self.family.kind} has no proposals: it predicts boxes from the expression.")
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
        """Detect each text.

        Args:
            texts: phrases, or a bank; None for the current vocabulary. Given texts do not replace it.
            threshold: minimum score.
            max_detections: maximum number of boxes; default: the family's.
            image: output of :meth:`encode_image`; default: the image set by this thread.

        Raises:
            UserError: without an image or texts, for blank texts, and for limits out of range.
        """
        if texts is None:
            bank = self._bank_of(texts)
            return self._detect(self._image(image), bank, threshold, max_detections)
        image = self._image(image)
        if not isinstance(texts, str | TextBank) and len(texts) == 0:
            # An empty vocabulary has no detections; it is not an error.
            return Detections.none(image=image.picture.given)
        return self._detect(image, self._bank_of(texts), threshold, max_detections)

    def _bank_of(self, texts: Sequence[str] | TextBank | None) -> TextBank:
        if texts is None:
            if self.family.bank is None:
                raise UserError("No texts given and no vocabulary set. Pass texts or call set_vocabulary([...]).")
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
        """Run :meth:`detect` on each image; texts are encoded once and do not replace the current vocabulary.

        Args:
            images: an image, a folder, a pattern, a video, or a list or generator of these, as in
                :func:`apis.inputs.read_images`, read lazily; None for those of :meth:`set_images`.
            texts: see :meth:`detect`.
            batch_size: images per batch.
            threshold: minimum score.
            max_detections: maximum number of boxes per image or tile.
            tile: (side, overlap) of tiles in pixels; None: whole images.
            every: for videos, take one of every N frames.
            on_bad: called for an unreadable image, which is then skipped; None: raise.
        """
        bank = self._bank_of(texts)
        if images is None:
            yield from (self._detect(e, bank, threshold, max_detections) for e in self._current.get())
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
        pixels = read_images(images, every=every, on_bad=on_bad)
        while batch := list(islice(pixels, check_count("batch_size", batch_size))):
            for encoded in self.encode_images([photograph(*b) for b in batch], batch_size=batch_size):
                yield self._detect(encoded, bank, threshold, max_detections)

    @torch.no_grad()
    def explain(self, text: str, *, image: Any = None) -> Explanation:
        """Return the masked cosine of each grid cell with a text, and the text's mask."""
        (one,) = check_texts([text] if isinstance(text, str) else text, "text")
        return self.family.explain(self._image(image), one)

    @torch.no_grad()
    def embed(self, boxes: Any = None, *, image: Any = None) -> np.ndarray:
        """Return ``[R, D]`` region vectors, not normalised, which are compared with texts.

        Args:
            boxes: ``[R, 4]`` xyxy pixels; None for the boxes of the encoded image, in their order.
            image: output of :meth:`encode_image`, or an image; default: the image set by this thread.

        Raises:
            UserError: without an image, and for boxes outside it.
        """
        if boxes is not None:
            picture = image if is_image(image) else self._image(image).picture
            image = self.encode_image(picture, boxes=boxes)
        elif is_image(image):
            image = self.encode_image(image)
        return self.family.embed(self._image(image))[1].float().cpu().numpy()

    @torch.no_grad()
    def segment(self, what: str | Detections, *, image: Any = None) -> np.ndarray:
        """Return instance masks, for families with a mask head.

        Args:
            what: an expression, or detections of the image.
            image: output of :meth:`encode_image`; default: the image set by this thread.

        Returns:
            ``[H, W]`` bool for an expression (all False if it has no target), ``[N, H, W]`` for N detections.

        Raises:
            UserError: for a family without a mask head.
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
