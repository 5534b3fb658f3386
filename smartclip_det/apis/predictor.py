"""SmartCLIPPredictor: one image encoding, many cheap text queries.

Shape letters: R regions, C classes, D joint embedding, h w grid cells, H W image pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from smartclip_det.apis.answers import Detections, Explanation
from smartclip_det.apis.building import array_pipeline, build_detector
from smartclip_det.apis.inputs import HeldImage, ImageLike, check_count, check_texts, check_threshold, load_image
from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.fusion import FUSIONS
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.text_bank import TextBank
from smartclip_det.models.grounding.dependency import reader_of
from smartclip_det.models.grounding.parsing import Entity
from smartclip_det.models.grounding.zero_shot import READINGS, rank_by_tree
from smartclip_det.models.towers.smartclip import SmartCLIP
from smartclip_det.models.towers.source import load_towers
from smartclip_det.models.vocabulary import build_bank, default_cache_dir
from smartclip_det.utils.devices import autocast, check_precision, full_precision, resolve_device


@dataclass(frozen=True)
class EncodedImage:
    """What an image is encoded to, once; nothing changes it.

    Attributes:
        vectors: ``[R, D]`` of the box head.
        dense_vectors: ``[R, D]`` pooled from the dense map.
        objectness: ``[R]``.
        boxes: ``[R, 4]`` decoded xyxy boxes in original pixels.
        dense: ``[D, h, w]`` dense map.
        image_cells: (rows, columns) of the grid that show the image and not padding.
    """

    vectors: Tensor
    dense_vectors: Tensor
    objectness: Tensor
    boxes: Tensor
    dense: Tensor
    image_cells: tuple[int, int]


class SmartCLIPPredictor:
    """Detect, ground and explain with an open-vocabulary detector.

    >>> predictor = SmartCLIPPredictor.from_config("config.py", "epoch_3.pth")   # doctest: +SKIP
    >>> predictor.set_image("street.jpg")                                         # doctest: +SKIP
    >>> predictor.detect(["red mug", "left dog"]).above(0.5)                      # doctest: +SKIP
    """

    def __init__(
        self, detector: Any, encoder: SmartCLIP, pipeline: Any, *, templates: str | Sequence[str] = "photo",
        policy: ScoringPolicy | None = None, cache_dir: str | Path | None = None, parser: str = "auto",
        precision: str = "fp32",
    ) -> None:  # fmt: skip
        """Build from parts; :meth:`from_config` is the usual way.

        Args:
            detector: an :class:`OpenVocabRCNN`.
            encoder: the towers that the detector's backbone came from.
            pipeline: MMDetection test pipeline that takes ``img`` arrays.
            templates: prompts of :meth:`set_vocabulary`.
            policy: scoring policy; default: the detector's with a sigmoid against background, so that a class's
                score does not depend on the other classes asked for.
            cache_dir: folder of encoded texts, None for none.
            parser: who reads expressions: ``auto`` (spaCy where a pipeline is installed), ``rules``, or the name of a
                spaCy pipeline.
            precision: of the tower and neck: ``fp32``, ``bf16`` or ``fp16``; all else is computed in fp32.
        """
        self.detector = detector.eval()
        self.encoder = encoder.eval()
        self.pipeline = pipeline
        self.templates = templates
        self.cache_dir = cache_dir
        self.policy = policy or detector.policy.with_(activation="sigmoid", sigmoid_reference="background")
        self.parser, self.precision = parser, check_precision(precision)
        self._reader: Callable[[str], Entity] | None = None
        self._held: HeldImage[EncodedImage] = HeldImage()

    @staticmethod
    def from_config(
        config: str | Path, checkpoint: str | Path | None = None, *, device: str = "auto",
        cfg_options: Mapping[str, Any] | None = None, templates: str | Sequence[str] = "photo",
        policy: Mapping[str, Any] | None = None, use_cache: bool = True, parser: str = "auto", precision: str = "fp32",
    ) -> SmartCLIPPredictor:  # fmt: skip
        """Build from a config of an :class:`OpenVocabRCNN` and its checkpoint.

        Args:
            config: config file.
            checkpoint: weights; None for the config's initial ones (random heads: for tests only).
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
            cfg_options: overrides.
            templates: prompts of :meth:`set_vocabulary`.
            policy: changes to the default policy of the constructor.
            use_cache: keep encoded texts in the user's cache folder.
            parser: see the constructor.
            precision: see the constructor.

        Raises:
            UserError: for missing files, configs of other detectors, or a device that is not there.
        """
        cfg, detector = build_detector(config, checkpoint, cfg_options, only="OpenVocabRCNN")
        place = resolve_device(device)
        changes = {"activation": "sigmoid", "sigmoid_reference": "background", **(policy or {})}
        pipeline = array_pipeline(cfg.test_dataloader.dataset)
        return SmartCLIPPredictor(
            detector.to(place), load_towers(cfg.towers).to(place), pipeline, templates=templates,
            policy=detector.policy.with_(**changes), cache_dir=default_cache_dir() if use_cache else None,
            parser=parser, precision=precision,
        )  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Where the detector is."""
        return next(self.detector.parameters()).device

    @property
    def protocol(self) -> dict[str, Any]:
        """How answers are made, for their stamp."""
        return {"policy": self.policy.to_dict(), "towers": self.encoder.checkpoint_hash, "precision": self.precision}

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Names of the bank in force; empty before :meth:`set_vocabulary`."""
        bank = self.detector.text_bank
        return () if bank is None else bank.names

    def set_vocabulary(self, vocabulary: Sequence[str] | TextBank, *, seen: Sequence[str] | None = None) -> TextBank:
        """Put a vocabulary in force; weights are not touched.

        Args:
            vocabulary: class names or a ready bank of the same towers.
            seen: names that were trained on; fusions weigh them otherwise. Default: all count as unseen when names
                are given.
        """
        if isinstance(vocabulary, TextBank):
            bank = vocabulary
        else:
            bank = self._encode(vocabulary, self.templates).with_seen(seen or [])
        bank = bank.to(self.device)
        self.detector.set_text_bank(bank)
        return bank

    def _encode(self, names: Sequence[str], templates: str | Sequence[str]) -> TextBank:
        with full_precision(self.device):
            return build_bank(
                self.encoder, names, templates=templates, template_order=self.policy.template_order,
                cache_dir=self.cache_dir,
            ).to(self.device)  # fmt: skip

    def set_image(self, image: ImageLike) -> EncodedImage:
        """Encode an image and hold it for the queries of this thread; a call that fails leaves none.

        Args:
            image: path, PIL image (its EXIF orientation is applied) or ``[H, W, 3]`` uint8 RGB array.

        Raises:
            UserError: for a missing or unreadable file or an array of another shape.
        """
        self._held.set(None)
        encoded = self.encode_image(image)
        self._held.set(encoded)
        return encoded

    def encode_image(self, image: ImageLike) -> EncodedImage:
        """Encode an image: tower, pyramid, proposals and region vectors, none of which depend on texts."""
        return self.encode_images([image])[0]

    @torch.no_grad()
    def encode_images(self, images: Sequence[ImageLike], *, batch_size: int = 8) -> list[EncodedImage]:
        """Encode images, those of one input shape together, so that no image sees the padding of another.

        Args:
            images: see :meth:`set_image`.
            batch_size: images in one forward pass at most.
        """
        check_count("batch_size", batch_size)
        data = [self.pipeline({"img": np.ascontiguousarray(load_image(i)[..., ::-1]), "img_id": 0}) for i in images]
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for n, entry in enumerate(data):
            by_shape.setdefault(tuple(entry["inputs"].shape), []).append(n)
        out: dict[int, EncodedImage] = {}
        for same in by_shape.values():
            for start in range(0, len(same), batch_size):
                chosen = same[start : start + batch_size]
                out |= dict(zip(chosen, self._encode_batch([data[n] for n in chosen]), strict=True))
        return [out[n] for n in range(len(data))]

    def _encode_batch(self, data: Sequence[Mapping[str, Any]]) -> Iterator[EncodedImage]:
        from mmdet.structures.bbox import bbox2roi

        batch = self.detector.data_preprocessor(
            {"inputs": [d["inputs"] for d in data], "data_samples": [d["data_samples"] for d in data]}, False
        )
        images, samples = batch["inputs"], batch["data_samples"]
        with autocast(self.device, self.precision):
            features = self.detector.backbone.features(images, dense=True)
            pyramid = self.detector.neck(features.taps)
        with full_precision(self.device):
            dense, pyramid = features.dense.float(), tuple(p.float() for p in pyramid)
            proposals = self.detector.rpn_head.predict(pyramid, samples, rescale=False)
            rois = bbox2roi([p.bboxes for p in proposals])
            head = self.detector.roi_head
            vectors, deltas = head.bbox_head(head.pool(pyramid, rois))
            pooled = head.dense_vectors(dense, rois, self.policy)
            counts = [len(p.bboxes) for p in proposals]
            patch = self.detector.backbone.image_tower.patch_size
            for n, (v, d, p) in enumerate(
                zip(vectors.split(counts), deltas.split(counts), pooled.split(counts), strict=True)
            ):
                shape = samples[n].img_shape
                boxes = head.bbox_head.bbox_coder.decode(proposals[n].bboxes, d, max_shape=shape)
                scale = boxes.new_tensor([*samples[n].scale_factor] * 2)
                cells = (-(-shape[0] // patch), -(-shape[1] // patch))
                yield EncodedImage(v, p, proposals[n].scores, boxes / scale, dense[n], cells)

    def proposals(self, top_k: int = 100, *, image: EncodedImage | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The ``top_k`` class-agnostic boxes and their objectness.

        Returns:
            ``[N, 4]`` xyxy pixels of the original image, after the box head's regression, and ``[N]`` in [0, 1].
        """
        image = self._held.get(image)
        order = image.objectness.argsort(descending=True)[: check_count("top_k", top_k)]
        return image.boxes[order].cpu().numpy(), image.objectness[order].cpu().numpy()

    @torch.no_grad()
    def detect(
        self, texts: Sequence[str] | None = None, *, threshold: float = 0.0, max_detections: int | None = None,
        image: EncodedImage | None = None,
    ) -> Detections:  # fmt: skip
        """Boxes of each text.

        Args:
            texts: phrases to look for; None for the vocabulary in force. Given texts do not replace it.
            threshold: lowest score kept.
            max_detections: boxes at most; default: the detector's.
            image: what :meth:`encode_image` gave; default: the image that this thread set.

        Raises:
            UserError: without an image or texts, for blank texts, and for limits outside their range.
        """
        if texts is None:
            bank = self._bank_in_force()
            return self._detect(self._held.get(image), bank, threshold, max_detections)
        image = self._held.get(image)
        if not isinstance(texts, str) and len(texts) == 0:
            # A vocabulary that turned out empty finds nothing.
            return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), ())
        return self._detect(image, self._phrases(texts), threshold, max_detections)

    def _bank_in_force(self) -> TextBank:
        bank = self.detector.text_bank
        if bank is None:
            raise UserError("No texts given and no vocabulary in force. Give texts or call set_vocabulary([...]).")
        return bank

    def _phrases(self, texts: Sequence[str]) -> TextBank:
        return self._encode(check_texts(texts, "phrase"), self.templates).with_seen([])

    def _detect(self, image: EncodedImage, bank: TextBank, threshold: float, limit: int | None) -> Detections:
        head = self.detector.roi_head
        dense = image.dense_vectors if self.policy.fuses else None
        with full_precision(self.device):
            rows, classes, values = head.select(
                image.boxes, image.vectors, dense, image.objectness, bank, self.policy,
                score_threshold=check_threshold(threshold) - 1e-9,
                max_detections=check_count("max_detections", head.max_per_img if limit is None else limit),
            )  # fmt: skip
        return Detections(image.boxes[rows].cpu().numpy(), values.cpu().numpy(), classes.cpu().numpy(), bank.names)

    def tree(self, expression: str) -> Entity:
        """The entities, places and relations that :meth:`ground` reads in an expression."""
        if self._reader is None:
            self._reader = reader_of(self.parser)
        return self._reader(expression)

    @overload
    def ground(
        self, expression: str, *, top_k: int = 1, threshold: float = 0.0, reading: str = "chunks",
        image: EncodedImage | None = None,
    ) -> Detections: ...  # fmt: skip

    @overload
    def ground(
        self, expression: Sequence[str], *, top_k: int = 1, threshold: float = 0.0, reading: str = "chunks",
        image: EncodedImage | None = None,
    ) -> list[Detections]: ...  # fmt: skip

    @torch.no_grad()
    def ground(
        self, expression: str | Sequence[str], *, top_k: int = 1, threshold: float = 0.0, reading: str = "chunks",
        image: EncodedImage | None = None,
    ) -> Detections | list[Detections]:  # fmt: skip
        """The boxes that referring expressions fit best: zero-shot, proposals ranked by masked cosine.

        Texts are encoded as they stand, without a template, and all in one pass; the image is not encoded again.

        Args:
            expression: one text, or several.
            top_k: boxes of each expression at most.
            threshold: lowest score; an expression that no box reaches has no boxes: "none".
            reading: ``chunks``: the entities of :meth:`tree`, each under its own mask, joined by places and relations;
                ``expression``: the whole text under its mask; ``both``: their geometric mean.
            image: what :meth:`encode_image` gave; default: the image that this thread set.

        Returns:
            Detections best first, or a list of them for several expressions.

        Raises:
            UserError: without an image, for blank texts, and for limits outside their range.
        """
        texts, image = check_texts(expression, "expression"), self._held.get(image)
        check_choice("reading", reading, READINGS)
        top_k, threshold = check_count("top_k", top_k), check_threshold(threshold)
        trees = {t: Entity(t) if reading == "expression" else self.tree(t) for t in texts}
        parts = {t: [*([t] if reading == "both" else []), *trees[t].texts()] for t in texts}
        bank = self._encode(list(dict.fromkeys(p for t in texts for p in parts[t])), "none").with_seen([])
        scores = self._scores(image, bank)
        column = {n: k for k, n in enumerate(bank.names)}
        answers = {}
        for t in trees:
            chosen = {p: scores[:, column[p]] for p in parts[t]}
            rows, values = rank_by_tree(
                trees[t], chosen, image.boxes, whole=t if reading == "both" else None,
                iou_threshold=self.detector.roi_head.nms_iou, top_k=top_k, threshold=threshold,
            )  # fmt: skip
            labels = np.zeros(len(rows), dtype=np.int64)
            answers[t] = Detections(image.boxes[rows].cpu().numpy(), values.cpu().numpy(), labels, (t,))
        found = [answers[t] for t in texts]
        return found[0] if isinstance(expression, str) else found

    def _scores(self, image: EncodedImage, bank: TextBank) -> Tensor:
        """``[R, K]`` score of every box for every text by itself."""
        head, policy = self.detector.roi_head, self.policy
        dense = image.dense_vectors if policy.fuses else None
        alone = policy.activation == "sigmoid" and not FUSIONS[policy.fusion].renorm
        banks = [bank] if alone else [bank.select([n]) for n in bank.names]
        with full_precision(self.device):
            return torch.cat([head.scores(image.vectors, dense, image.objectness, b, policy) for b in banks], dim=1)

    @torch.no_grad()
    def explain(self, text: str, *, image: EncodedImage | None = None) -> Explanation:
        """Masked cosine of each grid cell with a text, and the text's mask."""
        image = self._held.get(image)
        bank = self._encode(check_texts(text, "text"), "none")
        d, h, w = image.dense.shape
        with full_precision(self.device):
            cosine = bank.cosine(image.dense.reshape(d, h * w).t(), self.policy, mask_mode=self.policy.dense_mode)
        rows, columns = image.image_cells
        mask = bank.resolved_masks(self.policy.dense_mode)
        kept = torch.ones(d) if mask is None else mask[0]
        return Explanation(cosine.view(h, w)[:rows, :columns].cpu().numpy(), kept.cpu().numpy(), text)

    @torch.no_grad()
    def detect_images(
        self, images: Iterable[ImageLike], texts: Sequence[str] | None = None, *, batch_size: int = 1, **options: Any
    ) -> Iterator[Detections]:
        """:meth:`detect` of each image; the texts are encoded once and do not replace the vocabulary in force.

        Args:
            images: see :meth:`set_image`.
            texts: phrases to look for; None for the vocabulary in force.
            batch_size: images that are read, and go through the tower, together.
            options: ``threshold`` and ``max_detections`` of :meth:`detect`.
        """
        bank = self._bank_in_force() if texts is None else self._phrases(texts)
        waiting = iter(images)
        while batch := list(islice(waiting, check_count("batch_size", batch_size))):
            for encoded in self.encode_images(batch, batch_size=batch_size):
                yield self._detect(encoded, bank, options.get("threshold", 0.0), options.get("max_detections"))
